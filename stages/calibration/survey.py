"""What capture found: the layers, their steps, and the units that follow from them."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.settings import DataSettings, Settings
from adatsq_pipe.stages.base.survey import Survey
from adatsq_pipe.stages.base.units import shards
from adatsq_pipe.stages.calibration.unit_keys import BlockKey, trajectory_unit


class CaptureSettings(Settings):
    """[capture]"""

    table: ClassVar[str] = "capture"

    rows: int = Field(default=48, ge=1, le=1_000_000)
    """Input rows kept per (scheduler step, layer, batch of captions)."""
    block: int = Field(default=25, ge=1)
    """Scheduler steps in one unit of inputs, and of sensitivities by step: fewer make more units, for more workers."""


def survey_of(context: Context) -> Survey:
    """What the survey found. Raises DamagedUnit."""
    return Survey.from_plain(context.read("capture", "survey")[0].value)


def left_of(context: Context) -> list[dict[str, Any]]:
    """The modules that are not quantized: `part`, and the fields of an inspection's SkippedModules.

    Empty for a capture of a version that did not record them."""
    manifest = context.manifest("capture")
    return list(manifest.read("left").value) if manifest.done("left") else []


def step_blocks(context: Context, steps: int) -> list[range]:
    """Scheduler steps in the ranges that are one unit of work each."""
    return shards(steps, context.settings[CaptureSettings].block)


def batch_count(context: Context) -> int:
    """Batches of calibration captions."""
    data = context.settings[DataSettings]
    return len(shards(len(data.prompts), data.batch))


def unit_waves(context: Context) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The stage's units by task, in its two waves. A batch's run and the inputs on it are one task, whose units are all
    known after the survey."""
    inputs = activation_units(context)
    batches = {trajectory_unit(batch): inputs.get(batch, []) for batch in range(batch_count(context))}
    return {"survey": ["survey"], "left": ["left"]}, {run: [run, *units] for run, units in batches.items()}


def activation_units(context: Context) -> dict[int, list[str]]:
    """The units of inputs by batch of captions, in order of steps; none before the survey."""
    manifest = context.manifest("capture")
    if not manifest.done("survey"):
        return {}
    blocks = range(len(step_blocks(context, Survey.from_plain(manifest.read("survey").value).steps)))
    return {batch: [BlockKey(block, batch).activations for block in blocks] for batch in range(batch_count(context))}


def total_units(context: Context) -> int | None:
    if not context.manifest("capture").done("survey"):
        return None
    return sum(len(units) for wave in unit_waves(context) for units in wave.values())
