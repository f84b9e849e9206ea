"""Hours: how long every stage takes on so many workers, on named devices or as measured here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from adatsq_pipe.pipeline.estimate.devices import Device
from adatsq_pipe.pipeline.estimate.memory import Placed
from adatsq_pipe.pipeline.estimate.outlook import Outlook
from adatsq_pipe.pipeline.estimate.trace import Cost
from adatsq_pipe.pipeline.estimate.work import BACKWARD, FORWARD, QUANTIZED, Work, clip_cost, solve_cost
from adatsq_pipe.stages.numerics.weight_grid import clip_tries

COMMIT = 0.012
"""Seconds that a unit takes besides its work, with a few small arrays: 6 to 15 ms in runs of flux-dev and wan."""
DISK = 0.5e9
"""Bytes that a worker writes and hashes a second."""
READ = 1e9
"""Bytes that a worker reads a second."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds of the three kinds of calls of a denoiser, of algebra, and of solving a layer [out, in]."""

    call: Callable[[str, str], float]
    """(kind, denoiser) -> seconds of a call of `data.batch` captions."""
    algebra: Callable[[Cost], float]
    solve: Callable[[int, int], float]
    """(in, out) -> seconds."""
    clip: Callable[[float], float]
    """Numbers whose clipping ratio is searched, times the ratios that are tried -> seconds."""


def of_device(device: Device, outlook: Outlook, placed: Mapping[str, Placed], moved: int) -> Speed:
    """On a named device. Where blocks take turns there, `moved` bytes of them come from main memory at every pass."""
    blockwise, recomputed = placed["capture"].blockwise, placed["fisher"].recomputed

    def call(kind: str, part: str) -> float:
        one = outlook.denoising[part]
        cost = {FORWARD: one.forward, BACKWARD: one.backward, QUANTIZED: one.quantized}[kind]
        passes = 1
        if kind == BACKWARD:
            passes = 2
            cost = cost + one.forward if recomputed else cost
        stage = {FORWARD: "capture", BACKWARD: "fisher", QUANTIZED: "search"}[kind]
        parts = math.ceil(one.captions / max(1, placed[stage].captions))
        kernels = Cost(flops=cost.flops, traffic=cost.traffic, kernels=cost.kernels * parts)
        return device.seconds(kernels, float(passes * parts * moved if blockwise else 0))

    def solve(width: int, out: int) -> float:
        recipe = outlook.recipe
        return device.seconds(solve_cost(width, out, gptq=recipe.solver == "gptq", clip=recipe.weight_clip))

    def clip(tried: float) -> float:
        return device.seconds(Cost(traffic=clip_cost(1, 1).traffic / clip_tries(1) * tried))

    return Speed(call=call, algebra=device.seconds, solve=solve, clip=clip)


def seconds_of(work: Work, speed: Speed, *, stored: int, read: int, units: int) -> float:
    """A stage's seconds of one worker that did all of it; `stored` bytes are what it writes, `read` what it reads
    besides the inputs that are counted with the work."""
    total = sum(count * speed.call(kind, part) for kind, of in work.calls.items() for part, count in of.items())
    if work.solved:
        total += sum(count * speed.solve(*shape) for shape, count in work.solved.items())
    else:
        total += speed.algebra(work.algebra)
    total += speed.clip(work.clipped) if work.clipped else 0.0
    return total + COMMIT * units + stored / DISK + read / READ


def on_workers(stage: str, seconds: float, waves: tuple[int, ...], workers: int) -> float:
    """A stage's seconds on so many workers: a wave's units are dealt to them, and the wave ends with the last."""
    shares = _shares(stage, waves)
    return sum(seconds * share * math.ceil(n / workers) / n for n, share in zip(waves, shares, strict=True) if n)


def _shares(stage: str, waves: tuple[int, ...]) -> list[float]:
    """How a stage's time is divided among its waves: a capture's is in its runs, a search's is divided among all levels
    alike, else all is in the largest."""
    if stage == "capture":
        return [0.0, 1.0, 0.0]
    if stage == "search" and len(waves) > 2:
        whole = sum(waves[:-1])
        return [*(n / whole for n in waves[:-1]), 0.0]
    return [float(i == waves.index(max(waves))) for i in range(len(waves))]
