"""Work: what every stage computes: forward passes, the algebra of weights, pictures that are decoded.

A stage's denoiser calls are counted by kind, for they are timed by kind: `forward`, `backward` (with the effects of
rounding) and `quantized`. The algebra is counted by layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from adatsq_pipe.pipeline.estimate.outlook import Outlook
from adatsq_pipe.pipeline.estimate.trace import HALF, Cost
from adatsq_pipe.pipeline.estimate.units import paths_of_levels, survivors_of
from adatsq_pipe.stages.allocation.batch_slices import BatchSlice
from adatsq_pipe.stages.allocation.bisection import measured_slice
from adatsq_pipe.stages.allocation.trellis import SearchSettings, widths_of
from adatsq_pipe.stages.base.settings import DataSettings
from adatsq_pipe.stages.base.survey import LayerInfo
from adatsq_pipe.stages.calibration.effects import FisherSettings
from adatsq_pipe.stages.calibration.survey import CaptureSettings
from adatsq_pipe.stages.numerics.gptq import BLOCK, VERY_WIDE, WIDE
from adatsq_pipe.stages.numerics.weight_grid import clip_tries

FORWARD, BACKWARD, QUANTIZED = "forward", "backward", "quantized"
CLIP_PASSES = 8
"""Times that a try of a clipping ratio reads or writes its weight: six operations, some in place."""
COLUMN_PASSES = 1
"""Times that a column reads the errors of those before it in its block, in float32."""
COLUMN_KERNELS = 10
SAMPLE_PASSES, SAMPLE_KERNELS = 3, 3
"""Times that a sampled input is read or written (its absolute values, and their maximum), and the operations on it."""
DECODE_FLOPS = 1.1e6
"""FLOPs of an autoencoder of images for each pixel, at 128 channels in its last layers (Stable Diffusion's: 2.5 TFLOPs
for 1024 x 1024 pixels); they grow with the square of the channels."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one stage computes, in all."""

    calls: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By kind and denoiser: calls of `data.batch` captions."""
    passes: int = 0
    """Calls of the denoiser as they are made, of whatever batch; a backward pass counts once more."""
    algebra: Cost = field(default_factory=Cost)
    """What is computed besides calls of a denoiser."""
    solved: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """How many layers of every (in, out) are solved."""
    clipped: float = 0.0
    """Numbers of weights whose clipping ratio is searched besides the solves', once for every ratio that is tried."""


def work_of(outlook: Outlook) -> dict[str, Work]:
    """By stage."""
    return {
        "capture": _capture(outlook),
        "fisher": _fisher(outlook),
        "hessian": Work(algebra=_hessian(outlook)),
        "solve": _solve(outlook),
        "search": _search(outlook),
        "assemble": Work(),
        "reference": _drawn(outlook, FORWARD),
        "evaluate": _drawn(outlook, QUANTIZED),
    }


def _calls(outlook: Outlook, captions: float) -> dict[str, float]:
    """One run of so many captions, in calls of `data.batch` captions, by denoiser."""
    return {part: outlook.calls_of(part) * captions / one.captions for part, one in outlook.denoising.items()}


def _times(calls: Mapping[str, float], factor: float) -> dict[str, float]:
    return {part: factor * count for part, count in calls.items()}


def _encoded(outlook: Outlook, captions: int) -> Cost:
    """The text encoders, once a caption."""
    sizes = outlook.subject.parameters
    numbers = sum(size for part, size in sizes.items() if part.startswith("text_encoder"))
    return Cost(flops={_kind(outlook): 2.0 * numbers * outlook.geometry.text * captions})


def _kind(outlook: Outlook) -> str:
    return "float32" if outlook.size == 4 else HALF


def _capture(outlook: Outlook) -> Work:
    """Every run once; a call of each denoiser for the survey."""
    runs = len(outlook.batches) * outlook.geometry.calls
    return Work(
        calls={FORWARD: {part: n + 1 for part, n in _calls(outlook, outlook.captions).items()}},
        passes=runs + len(outlook.denoising),
        algebra=_encoded(outlook, outlook.captions) + _sampled(outlook),
    )


def _sampled(outlook: Outlook) -> Cost:
    """Rows and peaks of every distinct input, at every call of the runs."""
    found = Cost()
    for part, calls in _calls(outlook, outlook.captions).items():
        one = outlook.denoising[part]
        inputs = [row for row in one.survey.layers if row.owns_input]
        numbers = sum(one.rows[row.name] * row.in_features for row in inputs)
        traffic = float(SAMPLE_PASSES * outlook.size * numbers)
        found += Cost(traffic=traffic, kernels=float(SAMPLE_KERNELS * len(inputs))) * calls
    return found


def _fisher(outlook: Outlook) -> Work:
    draws, runs = outlook.settings[FisherSettings].draws, len(outlook.batches) * outlook.geometry.calls
    sweeps = outlook.recipe.sensitivity == "trajectory"
    return Work(
        calls={BACKWARD: _times(_calls(outlook, outlook.captions), draws)},
        passes=2 * draws * runs,
        algebra=_encoded(outlook, outlook.captions),
        clipped=_clipped(outlook) if sweeps and outlook.recipe.weight_clip else 0.0,
    )


def _clipped(outlook: Outlook) -> float:
    return float(sum(row.size * clip_tries(row.in_features) for row in outlook.survey.layers))


def _hessian(outlook: Outlook) -> Cost:
    """X^T X of every step in float32, added to every Gram matrix of the input in float64."""
    per_call = max(1, outlook.settings[CaptureSettings].rows // outlook.geometry.calls_per_step)
    flops, traffic, kernels = 0.0, 0.0, 0.0
    for part, one in outlook.denoising.items():
        name = f"{part}." if len(outlook.denoising) > 1 else ""
        for row in (row for row in one.survey.layers if row.owns_input):
            rows = len(outlook.batches) * min(per_call, one.rows[row.name]) * outlook.geometry.calls_per_step
            steps, square = outlook.steps_of(part), row.in_features**2
            flops += steps * 2.0 * rows * square
            sums = outlook.grams[f"{name}{row.name}"]
            traffic += steps * square * (4 + sums * (4 + 8 + 8))
            kernels += steps * (3 + sums)
    return Cost(flops={"float32": flops}, traffic=traffic, kernels=kernels)


def clip_cost(width: int, out: int) -> Cost:
    """The search for the clipping ratios of one weight."""
    tries = clip_tries(width)
    return Cost(traffic=tries * CLIP_PASSES * 4.0 * width * out, kernels=float(tries * CLIP_PASSES))


def solve_cost(width: int, out: int, *, gptq: bool, clip: bool) -> Cost:
    """One layer [out, width]: its grid, and GPTQ: a Cholesky factor, products of a block of columns and of those
    before them; and the squared output of the weight, by half of its products, without GPTQ of its error too. Wide
    layers are turned and factored in float32, and multiply in bfloat16."""
    numbers, precise = float(width * out), "float32" if width >= VERY_WIDE else "float64"
    errors, rotation = (1.0 if gptq else 2.0) * numbers * width, 4.0 * width**2 * BLOCK
    found = Cost(flops={precise: rotation}, kernels=60.0)
    found += Cost(flops={HALF if width > WIDE else "float32": errors})
    found = found + clip_cost(width, out) if clip else found
    if not gptq:
        return found
    columns = COLUMN_PASSES * 4 * (BLOCK / 2) * numbers
    found += Cost(flops={precise: width**3 / 3.0})
    flops = {HALF if width >= VERY_WIDE else "float32": numbers * width}
    return found + Cost(flops=flops, traffic=columns + 8.0 * 6 * width**2, kernels=COLUMN_KERNELS * width)


def _solve(outlook: Outlook) -> Work:
    shapes: dict[tuple[int, int], int] = {}
    rows: tuple[LayerInfo, ...] = outlook.survey.layers
    for row in rows:
        shape = (row.in_features, row.out_features)
        shapes[shape] = shapes.get(shape, 0) + 1
    gptq, clip, total = outlook.recipe.solver == "gptq", outlook.recipe.weight_clip, Cost()
    for (width, out), count in shapes.items():
        total += solve_cost(width, out, gptq=gptq, clip=clip) * count
    return Work(algebra=total, solved=shapes)


def _search(outlook: Outlook) -> Work:
    """Rollouts of whole policies, and a beam's steps."""
    settings, data, allocation = (
        outlook.settings[SearchSettings],
        outlook.settings[DataSettings],
        outlook.recipe.allocation,
    )
    if allocation in ("uniform", "first_last"):
        return Work()
    rolled = BatchSlice.for_rollouts(data, settings)
    captions = sum(part.samples for part in rolled)
    if allocation == "decoupled":
        layers, widths = sum(row.rounded for row in outlook.survey.layers), len(widths_of(settings, allocation))
        tried = _times(_calls(outlook, outlook.batches[0]), layers * widths / outlook.geometry.steps)
        return Work(calls={QUANTIZED: tried}, passes=layers * widths)
    if allocation == "bisection":
        few, count = measured_slice(data, settings).samples, len(widths_of(settings, allocation))
        runs = count * (outlook.geometry.steps + 1) / 2 + 1
        measured, once = _times(_calls(outlook, few), runs), _calls(outlook, captions)
        calls = {part: many + once[part] for part, many in measured.items()}
        passes = round((runs + len(rolled)) * outlook.geometry.calls)
        return Work(calls={QUANTIZED: calls}, passes=passes, algebra=_encoded(outlook, captions + few))
    beam = allocation == "trellis" or settings.beam
    policies = survivors_of(outlook) if beam else 2
    calls, passes = _times(_calls(outlook, captions), policies), policies * len(rolled) * outlook.geometry.calls
    if beam:
        trellis = BatchSlice.for_trellis(data, settings)
        paths = sum(paths_of_levels(outlook))
        extended = _times(_calls(outlook, sum(part.samples for part in trellis)), paths / outlook.geometry.steps)
        calls = {part: count + extended[part] for part, count in calls.items()}
        passes += paths * len(trellis) * outlook.geometry.calls_per_step
    return Work(calls={QUANTIZED: calls}, passes=passes, algebra=_encoded(outlook, captions))


def _drawn(outlook: Outlook, kind: str) -> Work:
    """The held-out draws: a run and a decoded picture each."""
    pictures = sum(outlook.draws)
    return Work(
        calls={kind: _calls(outlook, pictures)},
        passes=len(outlook.draws) * outlook.geometry.calls,
        algebra=_encoded(outlook, pictures) + _decoded(outlook, pictures),
    )


def _decoded(outlook: Outlook, pictures: int) -> Cost:
    """The autoencoder, once a picture."""
    vae, geometry = outlook.subject.vae, outlook.geometry
    channels = vae.get("block_out_channels") or [vae.get("base_dim") or vae.get("decoder_base_dim") or 0]
    pixels = pictures * max(1, geometry.frames) * math.prod((geometry.height, geometry.width))
    return Cost(flops={_kind(outlook): 2.25 * DECODE_FLOPS * pixels * (channels[0] / 128) ** 2})
