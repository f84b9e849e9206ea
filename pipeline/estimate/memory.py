"""Memory: the most that a worker of every stage holds, on the device that computes and in main memory."""

from __future__ import annotations

from dataclasses import dataclass

from adatsq_pipe.pipeline.estimate.disk import FLOAT, quantized_layers
from adatsq_pipe.pipeline.estimate.outlook import Outlook
from adatsq_pipe.pipeline.placement import ROOM, RUNTIME
from adatsq_pipe.stages.architecture import memory
from adatsq_pipe.stages.architecture.memory import MemoryPlan
from adatsq_pipe.stages.base.settings import ModelSettings
from adatsq_pipe.stages.base.stage import all_stages
from adatsq_pipe.stages.calibration.survey import CaptureSettings
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings
from adatsq_pipe.stages.evaluation.reference_worker import TRUE_SCENES
from adatsq_pipe.stages.numerics.gptq import VERY_WIDE
from adatsq_pipe.stages.numerics.gram import BLOCK
from adatsq_pipe.stages.numerics.symmetric import half_size

PROCESS = 650 * 10**6
"""Bytes of main memory of a worker's process before it holds a model: Python, torch, diffusers, transformers, Ray."""
SCORING = 100 * 10**6
"""Bytes of the libraries that draws of the built-in world are scored with."""
RETAINED = 0.8
"""Share of its highest memory that a process keeps afterwards: C's allocator returns little of what lay in its heap.
Measured after fisher: 0.7 of what DiT-XL/2 held besides its model, all of what wan did."""
SCATTERED = 1.15
"""Memory of a backward pass's many tensors over their bytes, in C's heap."""
DECODING = 8.0
"""Maps of the picture's size, with the channels of its last layers, that an autoencoder holds at most as it decodes."""
PACKING = 3
"""Copies of a layer's codes, a byte each, while they are read and packed."""
STAGES = tuple(all_stages())
WITH_MODEL = ("capture", "fisher", "search", "reference", "evaluate")
"""The stages that run a model."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """How a stage's worker fits: bytes that it holds, and what gives way where they are too many."""

    device: int
    """On the device that computes."""
    host: int
    """In main memory, where that is not the device."""
    blockwise: bool = False
    """Blocks take turns on the device."""
    recomputed: bool = False
    """A backward pass computes blocks again."""
    captions: int = 0
    """Captions in one forward pass, fewer than configured where memory asks for it; 0 of stages that run no model."""


def memory_of(outlook: Outlook, device: int | None) -> dict[str, Placed]:
    """By stage, of a worker that has `device` bytes of a GPU; None where it computes in main memory."""
    if device is None:
        return _in_main_memory(outlook)
    plan = plan_of(outlook, device)
    return {stage: _on_device(outlook, stage, plan, device) for stage in STAGES}


def plan_of(outlook: Outlook, device: int) -> MemoryPlan:
    """How the run itself would place the full-precision model."""
    sizes = {part: one.sizes for part, one in outlook.denoising.items()} | dict(outlook.subject.sizes)
    one = next(iter(outlook.denoising.values()))
    return memory.plan(
        sizes, denoising=list(outlook.denoising), device=device, dtype=_dtype(outlook), rows=outlook.survey.layers,
        samples=one.captions,
    )  # fmt: skip


def _dtype(outlook: Outlook) -> str:
    return next(name for name, size in memory.BYTES.items() if size == outlook.size)


def _in_main_memory(outlook: Outlook) -> dict[str, Placed]:
    """Bytes of a worker that computes in main memory, by stage in the order of a run, for it lives as long as the run:
    the model and what a stage works with, or what the process has not given back of an earlier stage's."""
    found, most = dict[str, Placed](), 0.0
    for stage in STAGES:
        work, left = _besides(outlook, stage), RETAINED * most
        if stage == "fisher":
            work = SCATTERED * work + left  # what capture left is in small pieces
        held = max(work, left) + (_scored(outlook) if stage == "reference" else 0.0)
        most = max(most, held)
        found[stage] = Placed(device=int(PROCESS + outlook.weights + held), host=0)
    return found


def _besides(outlook: Outlook, stage: str) -> float:
    """Bytes that a stage works with besides the full-precision model."""
    packed = float(sum(quantized_layers(outlook, part) for part in outlook.denoising))
    if stage == "capture":
        return _forward(outlook) + 3 * _unit_of_capture(outlook)
    if stage == "fisher":
        return _errors(outlook) + _backward(outlook)
    if stage == "hessian":
        return max(_gram(outlook, name, whole=False) for name in outlook.grams)
    if stage == "solve":
        return max(_solve(outlook, *shape) for shape in _shapes(outlook))
    if stage == "search":
        return packed + _forward(outlook, quantized=True)
    if stage == "assemble":
        return max(0.0, _assembly(outlook) - outlook.weights)
    quantized = stage == "evaluate"
    drawn = max(_forward(outlook, _held_out(outlook), quantized=quantized), _decode(outlook))
    return drawn + (packed if quantized else 0.0)


def _on_device(outlook: Outlook, stage: str, plan: MemoryPlan, device: int) -> Placed:
    """Bytes of a GPU's worker: the run's own plan says whether blocks take turns; batches are halved until they fit."""
    loaded = outlook.weights  # a model is read into main memory before it goes to the device
    if stage == "assemble":
        return Placed(device=0, host=int(PROCESS + _assembly(outlook)))
    if stage not in WITH_MODEL:
        held = 0.0 if plan.blockwise else float(plan.weights)
        work = max(
            *(_gram(outlook, name, whole=True) for name in outlook.grams) if stage == "hessian" else (0.0,),
            *(_solve(outlook, *shape) for shape in _shapes(outlook)) if stage == "solve" else (0.0,),
        )
        return Placed(device=int(RUNTIME + held + work), host=PROCESS + loaded, blockwise=plan.blockwise)
    resident = plan.stays + plan.largest if plan.blockwise else plan.weights
    if stage in ("search", "evaluate"):
        resident += sum(quantized_layers(outlook, part) for part in outlook.denoising) * (not plan.blockwise)
    captions = _held_out(outlook) if stage in ("reference", "evaluate") else _calibrated(outlook)
    while True:
        working = _working(outlook, stage, captions, plan.recomputed)
        needed = RUNTIME + ROOM * (resident + working)
        if needed <= device or captions <= 1:
            break
        captions = (captions + 1) // 2
    return Placed(
        device=int(min(needed, max(device, RUNTIME + resident + working))),
        host=int(PROCESS + loaded),
        blockwise=plan.blockwise,
        recomputed=plan.recomputed and stage == "fisher",
        captions=captions,
    )


def _working(outlook: Outlook, stage: str, captions: int, recomputed: bool) -> float:
    """Bytes besides weights, for so many captions at a time."""
    if stage == "fisher":
        return _backward(outlook, captions, recomputed=recomputed)
    if stage == "capture":
        return _forward(outlook, captions)
    decoding = _decode(outlook, 1) if stage in ("reference", "evaluate") else 0.0
    return max(_forward(outlook, captions, quantized=stage in ("search", "evaluate")), decoding)


def _calibrated(outlook: Outlook) -> int:
    return next(iter(outlook.denoising.values())).captions


def _held_out(outlook: Outlook) -> int:
    return min(outlook.settings[EvaluateSettings].batch, sum(outlook.draws))


def _forward(outlook: Outlook, captions: int | None = None, *, quantized: bool = False) -> float:
    """Tensors of a forward pass at most, and the outputs of a run that are kept."""
    found = 0.0
    for part, one in outlook.denoising.items():
        share = (captions or one.captions) / one.captions
        peak = one.quantized.peak if quantized else one.forward.peak
        found = max(found, share * (peak + outlook.calls_of(part) * one.output))
    return found


def _backward(outlook: Outlook, captions: int | None = None, *, recomputed: bool = False) -> float:
    """Tensors of a backward pass at most: what all blocks keep, or their inputs and what one keeps."""
    found = 0.0
    for part, one in outlook.denoising.items():
        share, kept = (captions or one.captions) / one.captions, one.backward.peak
        if recomputed:  # every block's input stays until its turn
            kept += one.held_by_block - one.held + sum(block.count * block.input for block in one.blocks)
        found = max(found, share * (kept + outlook.calls_of(part) * one.output))
    return found


def _errors(outlook: Outlook) -> float:
    """The weights' rounding errors, float32, which a worker in main memory keeps as far as they fit beside."""
    if outlook.recipe.sensitivity != "trajectory":
        return 0.0
    numbers = sum(row.size for row in outlook.survey.layers)
    return min(4.0, outlook.size) * numbers


def _unit_of_capture(outlook: Outlook) -> float:
    """The rows of one unit of capture, in memory until it is written."""
    geometry, settings = outlook.geometry, outlook.settings[CaptureSettings]
    per_call = max(1, settings.rows // max(1, geometry.calls_per_step))
    calls = min(settings.block, geometry.steps) * geometry.calls_per_step
    return calls * outlook.size * sum(
        row.in_features * (1 + min(per_call, one.rows[row.name]))
        for one in outlook.denoising.values()
        for row in one.survey.layers
        if row.owns_input
    )  # fmt: skip


def _gram(outlook: Outlook, owner: str, *, whole: bool) -> float:
    """The halves of an input's Gram matrices; and, in blocks or of the `whole` matrix, their sums in float64 and one
    step's product in float32."""
    width, count = next(row.in_features for row in outlook.survey.layers if row.name == owner), outlook.grams[owner]
    block = width**2 if whole else min(width**2, BLOCK // 8)
    return float(4 * half_size(width) * count + block * (8 * count + 4))


def _shapes(outlook: Outlook) -> set[tuple[int, int]]:
    return {(row.in_features, row.out_features) for row in outlook.survey.layers}


def _solve(outlook: Outlook, width: int, out: int) -> float:
    """The Gram matrix while it is rotated; GPTQ: its copy and factor in float64, and the factor three times in float32;
    then weight, errors and codes. Wide layers have matrix and factor in float32, and the matrix in bfloat16; of those
    the bytes were measured."""
    if outlook.recipe.solver != "gptq":
        return float(24 * width**2 + 24 * width * out)
    if width >= VERY_WIDE:
        return float(16 * width**2 + 13 * width * out)
    return float(max(28 * width**2 + 4 * width * out, 12 * width**2 + 40 * width * out))


def _assembly(outlook: Outlook) -> float:
    """One layer's codes as they are packed. The tensors of a shard are written one by one, from their files."""
    return float(PACKING * max(width * out for width, out in _shapes(outlook)))


def stored_of(outlook: Outlook) -> int:
    """Bytes of the denoisers' weights as the source stores them, in the compute dtype where it has none."""
    sizes = {part: outlook.size * one.parameters for part, one in outlook.denoising.items()}
    return sum(outlook.subject.stored.get(part) or size for part, size in sizes.items())


def _scored(outlook: Outlook) -> float:
    """True scenes of the built-in world, rendered and once more with their channels last."""
    if not outlook.settings[ModelSettings].world:
        return 0.0
    return SCORING + 2.0 * FLOAT * TRUE_SCENES * outlook.geometry.pixels


def _decode(outlook: Outlook, pictures: int | None = None) -> float:
    """Maps of the autoencoder's last layers, for the pictures of a batch."""
    geometry, vae = outlook.geometry, outlook.subject.vae
    channels = vae.get("block_out_channels") or [vae.get("base_dim") or vae.get("decoder_base_dim") or 0]
    count = pictures or _held_out(outlook)
    frames = min(4, max(1, geometry.frames))  # clips are decoded in pieces
    pixels = count * frames * geometry.height * geometry.width
    return float(DECODING * outlook.size * pixels * int(channels[0]))
