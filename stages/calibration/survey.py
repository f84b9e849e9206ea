"""What capture found: the layers, their steps, and the units that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.settings import DataSettings, Settings
from adatsq_pipe.stages.base.units import shards

if TYPE_CHECKING:
    pass


class CaptureSettings(Settings):
    """[capture]"""

    table: ClassVar[str] = "capture"

    rows: int = Field(default=48, ge=1)
    """Input rows kept per (scheduler step, layer, batch of captions)."""
    block: int = Field(default=25, ge=1)
    """Scheduler steps in one unit of work: fewer make more units, for more workers."""


def survey_of(context: Context) -> dict[str, Any]:
    """What the survey found: `layers` (name, in, out, kind, source, macs), `steps`, `calls`, `timesteps`."""
    marker, _ = context.read("capture", "survey")
    return dict(marker.value)


def left_of(context: Context) -> list[dict[str, Any]]:
    """The modules that are not quantized: `part`, and the fields of an inspection's SkippedModules.

    Empty for a capture of a version that did not record them."""
    manifest = context.manifest("capture")
    return list(manifest.read("left").value) if manifest.done("left") else []


def active_steps(survey: Mapping[str, Any], row: Mapping[str, Any]) -> list[int]:
    """The steps at which the layer of a survey row is used: all, but of several denoisers each has its own."""
    found: list[int] = survey["parts"][row["part"]] if "parts" in survey else list(range(survey["steps"]))
    return found


def step_blocks(context: Context, steps: int) -> list[range]:
    """Scheduler steps in the ranges that are one unit of work each."""
    return shards(steps, context.settings[CaptureSettings].block)


def batch_count(context: Context) -> int:
    """Batches of calibration captions."""
    data = context.settings[DataSettings]
    return len(shards(len(data.prompts), data.batch))


def unit_waves(context: Context) -> tuple[list[str], list[str], list[str]]:
    """The stage's units in its three waves; the last is known after the survey."""
    trajectories = [f"trajectory/{shard:03d}" for shard in range(batch_count(context))]
    manifest = context.manifest("capture")
    if not manifest.done("survey"):
        return trajectories, ["survey", "left"], []
    blocks = len(step_blocks(context, manifest.read("survey").value["steps"]))
    activations = [f"activations/{b:03d}-{s:03d}" for b in range(blocks) for s in range(batch_count(context))]
    return trajectories, ["survey", "left"], activations


def total_units(context: Context) -> int | None:
    parts = unit_waves(context)
    return sum(map(len, parts)) if parts[2] else None
