"""Estimate: units, bytes, memory, forward passes and hours of every stage, in one value."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from adatsq_pipe.pipeline.config import ClusterSettings, RunConfig
from adatsq_pipe.pipeline.estimate.cast import cast_of, has_weights
from adatsq_pipe.pipeline.estimate.devices import LINK, PRODUCTS, TRAFFIC, Device, device_of
from adatsq_pipe.pipeline.estimate.disk import assembled_of, disk_of
from adatsq_pipe.pipeline.estimate.hours import Speed, of_device, on_workers, seconds_of
from adatsq_pipe.pipeline.estimate.memory import PROCESS, Placed, memory_of, plan_of, stored_of
from adatsq_pipe.pipeline.estimate.outlook import Outlook, outlook_of
from adatsq_pipe.pipeline.estimate.subject import Subject
from adatsq_pipe.pipeline.estimate.text import TextOutlook, text_outlook
from adatsq_pipe.pipeline.estimate.text import lines as text_lines
from adatsq_pipe.pipeline.estimate.units import units_of
from adatsq_pipe.pipeline.estimate.work import BACKWARD, FORWARD, QUANTIZED, Work, work_of
from adatsq_pipe.stages.architecture.memory import shown
from adatsq_pipe.stages.base.settings import ComputeSettings
from adatsq_pipe.storage.fingerprint import Plain

CALIBRATED = ("capture", "fisher", "search")
"""The stages whose batches are of calibration captions."""


@dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """What a stage takes. Bytes, seconds."""

    stage: str
    units: int
    disk: int
    memory: int
    """Of the device that computes, at most, by one worker."""
    host: int
    """Of main memory besides, by one worker."""
    passes: int
    """Calls of the denoiser; a backward pass counts once more."""
    tflops: float
    """10^12 floating-point operations of matrix products."""
    worker_seconds: float | None
    """Of one worker that does all of it; None where no speed is known."""
    wall_seconds: float | None
    """On all workers."""

    @property
    def disk_of_unit(self) -> float:
        """Bytes of one unit."""
        return self.disk / max(1, self.units)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run takes."""

    model: str
    pipeline: str
    parameters: int
    layers: int
    weights: int
    """Bytes of all models of the pipeline in the compute dtype."""
    call: str
    """The call of the pipeline, in words."""
    stages: Sequence[StageEstimate]
    folder: int
    """Bytes of the assembled folder, which is part of the disk's."""
    cast: int
    """Bytes of the cast weights that the workers of a machine share until the run ends, part of the disk's too."""
    workers: int
    device: str
    """The named device, "this machine" where it was measured, or ""."""
    device_memory: int | None
    """Bytes of a worker's device; None in main memory."""
    notes: Sequence[str]
    """How the model fits on its device, where it does not fit as configured; and what text encoders take."""
    assumed: Sequence[str]

    @property
    def disk(self) -> int:
        """Bytes at most: what the stages leave, and the cast weights before the run ends."""
        return sum(stage.disk for stage in self.stages) + self.cast

    @property
    def memory(self) -> int:
        """Of the device, at most, by one worker."""
        return max(stage.memory for stage in self.stages)

    @property
    def host(self) -> int:
        """Main memory of all workers of this machine together."""
        if self.device_memory is None:
            return self.workers * self.memory
        return self.workers * max(stage.host for stage in self.stages)

    @property
    def passes(self) -> int:
        return sum(stage.passes for stage in self.stages)

    @property
    def wall_seconds(self) -> float | None:
        found = [stage.wall_seconds for stage in self.stages]
        return None if None in found else sum(seconds or 0.0 for seconds in found)

    def plain(self) -> dict[str, Plain]:
        """As JSON values."""
        whole = {
            "units": sum(stage.units for stage in self.stages), "disk": self.disk, "memory": self.memory,
            "host": self.host, "passes": self.passes, "tflops": sum(stage.tflops for stage in self.stages),
            "wall_seconds": self.wall_seconds,
        }  # fmt: skip
        return {**asdict(self), "total": whole}


def estimate(
    config: RunConfig, *, device: str = "", gpus: int = 0, measure: bool = False, subject: Subject | None = None
) -> Estimate:
    """What a run with these settings would take, on `gpus` of a named `device`, or as timed on this machine.

    Raises ConfigError, NotTaken, StageError.
    """
    named = device_of(device) if device else None
    outlook = outlook_of(config, subject)
    room = _device_memory(config, named)
    units, work = units_of(outlook), work_of(outlook)
    disk, placed = disk_of(outlook, units), memory_of(outlook, room)
    workers = gpus or _workers(config.cluster, named)
    speed: Speed | None = None
    if measure:
        from adatsq_pipe.pipeline.estimate.measure import measured  # times nothing unless it is asked to

        speed = measured(outlook)
    elif named is not None:
        assert room is not None
        plan = plan_of(outlook, room)
        speed = of_device(named, outlook, placed, plan.weights - plan.stays)
    stages = []
    for name, waves in units.items():
        read = stored_of(outlook) + disk["solve"] if name == "assemble" else 0
        seconds = seconds_of(work[name], speed, stored=disk[name], read=read, units=sum(waves)) if speed else None
        stages.append(
            StageEstimate(
                stage=name,
                units=sum(waves),
                disk=disk[name],
                memory=placed[name].device,
                host=placed[name].host,
                passes=work[name].passes,
                tflops=_tflops(outlook, work[name]),
                worker_seconds=seconds,
                wall_seconds=None if seconds is None else on_workers(name, seconds, waves, workers),
            )
        )
    shares = config.cluster.shares_host and workers > 1 and (room is None or placed["capture"].blockwise)
    cast = cast_of(outlook) if shares else 0
    text = text_outlook(outlook)
    if text is not None:
        stages = _with_text(outlook, stages, text, placed, speed, workers)
    return Estimate(
        model=str(outlook.subject.path),
        pipeline=outlook.subject.pipeline,
        parameters=outlook.survey.parameters,
        layers=len(outlook.survey.layers),
        weights=outlook.weights,
        call=_call(outlook),
        stages=stages,
        folder=assembled_of(outlook) - (text.saved if text else 0),
        cast=cast,
        workers=workers,
        device=device.lower() or ("this machine" if measure else ""),
        device_memory=room,
        notes=[*_notes(outlook, placed, room), *text_lines(outlook, text)],
        assumed=[*outlook.assumed, *_assumed(outlook, named, room, measure, shares=shares)],
    )


def _with_text(
    outlook: Outlook,
    stages: Sequence[StageEstimate],
    text: TextOutlook,
    placed: Mapping[str, Placed],
    speed: Speed | None,
    workers: int,
) -> list[StageEstimate]:
    """The stages of a run that quantizes text encoders, in order."""
    own = list[StageEstimate]()
    effect = placed["reference"]
    for name, units, disk, work, device, host in (
        ("text_encoder", text.units, text.stored, text.work, PROCESS + text.memory, 0),
        ("text_effect", len(text.draws), text.effect_bytes, text.effect, effect.device + text.stored, effect.host),
    ):
        seconds = seconds_of(work, speed, stored=disk, read=0, units=units) if speed else None
        own.append(
            StageEstimate(
                stage=name, units=units, disk=disk, memory=device, host=host, passes=work.passes,
                tflops=_tflops(outlook, work),
                worker_seconds=seconds,
                wall_seconds=None if seconds is None else on_workers(name, seconds, (units,), workers),
            )
        )  # fmt: skip
    place = next(i for i, stage in enumerate(stages) if stage.stage == "assemble")
    assembled = replace(stages[place], disk=max(0, stages[place].disk - text.saved))
    return [*stages[:place], own[0], assembled, *stages[place + 1 :], own[1]]


def _device_memory(config: RunConfig, named: Device | None) -> int | None:
    """Bytes that a worker has of a GPU; None where it computes in main memory."""
    share = config.cluster.device_share
    if config.cluster.gpu_memory:
        return int(share * config.cluster.gpu_memory * 1e9)
    if named is not None:
        return int(share * named.memory)
    return None


def _workers(cluster: ClusterSettings, named: Device | None) -> int:
    if cluster.workers:
        return cluster.workers
    if named is not None:
        return max(1, int(cluster.gpus))
    return 1 if cluster.executor == "inline" else len(os.sched_getaffinity(0))


def _tflops(outlook: Outlook, work: Work) -> float:
    total = work.algebra.total
    for kind, calls in work.calls.items():
        for part, count in calls.items():
            one = outlook.denoising[part]
            total += count * {FORWARD: one.forward, BACKWARD: one.backward, QUANTIZED: one.quantized}[kind].total
    return total / 1e12


def _notes(outlook: Outlook, placed: Mapping[str, Placed], room: int | None) -> list[str]:
    found, most = [], max(one.captions for one in outlook.denoising.values())
    if placed["capture"].blockwise:
        found.append("the weights do not fit on the device: blocks take turns there")
    if placed["fisher"].recomputed:
        found.append("fisher computes blocks again in its backward pass")
    halved = {name: of.captions for name, of in placed.items() if 0 < of.captions < most and name in CALIBRATED}
    found += [f"{name} runs {captions} of {most} captions at a time" for name, captions in halved.items()]
    over = {name: of.device for name, of in placed.items() if room is not None and of.device > room}
    found += [
        f"{name} needs {shown(size)} with one caption at a time and does not fit: take a larger device, a smaller "
        "picture or fewer frames in model.call"
        for name, size in over.items()
    ]
    return found


def _call(outlook: Outlook) -> str:
    at = outlook.geometry
    size = f"{at.height} x {at.width}" + (f", {at.frames} frames" if at.frames else "")
    guided = f", {at.calls_per_step} calls a step" if at.calls_per_step > 1 else ""
    guided = ", guided and unguided halves in one call" if at.halves > 1 else guided
    words = f", captions of {at.text} tokens" if at.text else ""
    latents = " x ".join(map(str, at.latents))
    divided = "".join(f", {steps} of them {part}" for part, steps in at.steps_of.items())
    return f"{size}, {at.steps} steps{divided}{guided}; latents {latents}{words}"


def _assumed(
    outlook: Outlook, named: Device | None, room: int | None, measure: bool, *, shares: bool
) -> list[str]:  # fmt: skip
    found, compute = [], outlook.settings[ComputeSettings]
    if shares and not has_weights(outlook):
        found.append(
            f"the weights are stored in {compute.dtype}; else workers share a copy of them in it, "
            f"{shown(outlook.weights)} of disk on each machine until the run ends"
        )
    if outlook.geometry.text:
        found.append(f"captions are as long as the call allows, {outlook.geometry.text} tokens; shorter ones take less")
    if outlook.recipe.sensitivity == "trajectory":
        found.append("a gradient can be carried through the pipeline's loop; fisher finds out")
    if named is not None:
        found.append(
            f"products reach {PRODUCTS:g} of the device's peak, other operations {TRAFFIC:g} of its bandwidth, copies "
            f"from main memory {LINK:g} of its link"
        )
        if compute.dtype == "float32":
            found.append("compute.dtype is float32; bfloat16 takes half the memory and less time")
    if measure:
        found.append("blocks are alike, and this machine is as fast during the run as it was in the measurement")
    if room is None and named is None:
        found.append("workers compute in main memory; name a --device, or set cluster.gpu_memory, for a GPU's")
    return found
