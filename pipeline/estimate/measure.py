"""Measure: one block of every kind, timed on this machine as a run's stages compute it, and a few small solves.

A block's weights are random; its call has `data.batch` captions. Times are taken to grow with the number of blocks and,
outside the blocks, with FLOPs. Times are CPU seconds over threads where
a CPU computes, so that other programs on the machine make no difference.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.estimate.denoising import Block, Denoising
from adatsq_pipe.pipeline.estimate.hours import Speed
from adatsq_pipe.pipeline.estimate.outlook import Outlook
from adatsq_pipe.pipeline.estimate.probe import Probe
from adatsq_pipe.pipeline.estimate.work import BACKWARD, FORWARD, QUANTIZED
from adatsq_pipe.stages.base.settings import ComputeSettings
from adatsq_pipe.stages.denoiser.device import require, settle
from adatsq_pipe.stages.numerics import gptq
from adatsq_pipe.stages.numerics.products import use_faster_products
from adatsq_pipe.stages.numerics.weight_grid import clip_tries, weight_grid

REPEATS = 3
WIDTH, OUTS = 512, (64, 512)
"""Shapes of the layers that are solved to see how fast this machine does it: input width, outputs."""


@dataclass(frozen=True)
class Clock:
    """Times work on a device."""

    device: str
    threads: int

    def seconds(self, work: Callable[[], object], repeats: int = REPEATS) -> float:
        """The median of some runs, after one that is not counted if it is short."""
        first = self._once(work)
        if first > 5.0:
            return first
        return statistics.median(self._once(work) for _ in range(repeats))

    def _once(self, work: Callable[[], object]) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
            start = time.perf_counter()
            work()
            torch.cuda.synchronize()
            return time.perf_counter() - start
        start = time.process_time()
        work()
        return (time.process_time() - start) / self.threads


def measured(outlook: Outlook) -> Speed:
    """The speed of this machine's device, as [compute] names it. Raises StageError if it is not here."""
    compute = outlook.settings[ComputeSettings]
    require(compute.device)
    settle(device=compute.device, threads=compute.threads)
    clock = Clock(compute.device, compute.threads)
    if lacking := [line for one in outlook.denoising.values() for line in one.assumed if not one.blocks]:
        raise ConfigError(f"--measure times a block, and none can be called: {lacking[0]}; use --device")
    times = {part: _calls(one, outlook, clock) for part, one in outlook.denoising.items()}
    one = next(iter(outlook.denoising.values()))
    rate = one.forward.total / next(iter(times.values()))[FORWARD]
    solve = _solver(outlook, clock)

    @cache
    def clip_rate() -> float:
        return _clip_seconds(outlook, clock)

    return Speed(
        call=lambda kind, part: times[part][kind],
        algebra=lambda cost: cost.total / rate + cost.traffic / _bandwidth(clock),
        solve=solve,
        clip=lambda tried: tried * clip_rate(),
    )


def _calls(one: Denoising, outlook: Outlook, clock: Clock) -> dict[str, float]:
    """Seconds of a call of `data.batch` captions by kind."""
    totals = dict.fromkeys((FORWARD, BACKWARD, QUANTIZED), 0.0)
    for block in one.blocks:
        probe = _real(block, outlook, clock.device)
        quantized = probe.quantized(outlook.geometry.steps)
        for kind, work in ((FORWARD, probe.forward), (BACKWARD, probe.backward), (QUANTIZED, quantized)):
            totals[kind] += block.count * clock.seconds(work)
    around = one.rest * totals[FORWARD]
    passes = {FORWARD: 1, BACKWARD: 2, QUANTIZED: 1}
    return {kind: seconds + passes[kind] * around for kind, seconds in totals.items()}


def _real(block: Block, outlook: Outlook, device: str) -> Probe:
    """The block with random weights and inputs on a device. A CPU's worker keeps the errors of weights."""
    random = torch.Generator().manual_seed(0)

    def real(value: Any) -> Any:
        return _random(value, random).to(device) if isinstance(value, Tensor) else value

    module: nn.Module = copy.deepcopy(block.module)
    for part in module.modules():
        for own in (part._parameters, part._buffers):
            for name, tensor in own.items():
                if tensor is not None:
                    made = real(tensor)
                    own[name] = nn.Parameter(made, requires_grad=False) if own is part._parameters else made
    use_faster_products(module)
    args, kwargs = tree_map(real, (block.args, block.kwargs))
    return Probe(module, args, kwargs, block.rows, outlook.recipe, device == "cpu")


def _random(like: Tensor, random: torch.Generator) -> Tensor:
    """Random values in the shape and dtype of a tensor without values; whole numbers are 0, truths true."""
    if like.dtype == torch.bool:
        return torch.ones(like.shape, dtype=torch.bool)
    if not like.is_floating_point() and not like.is_complex():
        return torch.zeros(like.shape, dtype=like.dtype)
    found = torch.randn(like.shape, generator=random, dtype=torch.complex64 if like.is_complex() else torch.float32)
    return (0.02 * found).to(like.dtype)


def _weight(out: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2 * WIDTH, WIDTH, generator=random)
    return torch.randn(out, WIDTH, generator=random), (x.T @ x).double()


def _clipped(outlook: Outlook) -> object:
    recipe = outlook.recipe
    weight, _ = _weight(OUTS[1])
    return weight_grid(
        weight, bits=recipe.weight_bits, group=0, symmetric=recipe.weight_symmetric, clip=recipe.weight_clip
    )


def _bandwidth(clock: Clock) -> float:
    """Bytes that an addition in float64 reads and writes a second."""
    x = torch.ones(2_000_000, dtype=torch.float64, device=clock.device)
    return 3 * x.nbytes / clock.seconds(lambda: x + x)


def _solver(outlook: Outlook, clock: Clock) -> Callable[[int, int], float]:
    """Seconds of solving a layer by its (in, out), from solves of small ones: a factor's share grows with in^3, that of
    products with in^2 out, of columns with in and in out, of the clipping ratio with in out."""
    device, recipe = clock.device, outlook.recipe
    made = {out: tuple(part.to(device) for part in _weight(out)) for out in OUTS}
    grids = {
        out: weight_grid(w, bits=recipe.weight_bits, group=0, symmetric=recipe.weight_symmetric, clip=False)
        for out, (w, _) in made.items()
    }
    large = torch.eye(2 * WIDTH, dtype=torch.float64, device=device)
    single = large.float()
    cubic = clock.seconds(lambda: gptq.factor(large, damping=0.01, act_order=True)) / (2 * WIDTH) ** 3
    product = clock.seconds(lambda: single @ single) / (2 * WIDTH) ** 3
    clip = _clip_seconds(outlook, clock)
    factors = {out: gptq.factor(h, damping=0.01, act_order=True) for out, (_, h) in made.items()}
    solved = {out: clock.seconds(partial(gptq.solve, w, factors[out], grids[out])) for out, (w, _) in made.items()}
    few, many = OUTS
    columns = {out: max(0.0, solved[out] - product / 2 * WIDTH**2 * out) for out in OUTS}
    each = (columns[many] - columns[few]) / (many - few) / WIDTH
    constant = max(0.0, columns[few] / WIDTH - each * few)

    def seconds(width: int, out: int) -> float:
        nearest = clip * clip_tries(width) * width * out + product * width**2 * out + 4 * product * width**2 * 64
        if recipe.solver != "gptq":
            return nearest
        return nearest + cubic * width**3 + product / 2 * width**2 * out + width * (constant + each * out)

    return seconds


def _clip_seconds(outlook: Outlook, clock: Clock) -> float:
    """Seconds of one number of a weight and one clipping ratio."""
    return clock.seconds(lambda: _clipped(outlook)) / (WIDTH * OUTS[1] * clip_tries(WIDTH))
