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
    """Scheduler steps in one unit of work: fewer make more units, for more workers."""


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


def unit_waves(context: Context) -> tuple[list[str], list[str], list[str]]:
    """The stage's units in its three waves; the last is known after the survey."""
    trajectories = [trajectory_unit(batch) for batch in range(batch_count(context))]
    manifest = context.manifest("capture")
    if not manifest.done("survey"):
        return trajectories, ["survey", "left"], []
    blocks = len(step_blocks(context, Survey.from_plain(manifest.read("survey").value).steps))
    activations = [BlockKey(b, s).activations for b in range(blocks) for s in range(batch_count(context))]
    return trajectories, ["survey", "left"], activations


def total_units(context: Context) -> int | None:
    parts = unit_waves(context)
    return sum(map(len, parts)) if parts[2] else None
