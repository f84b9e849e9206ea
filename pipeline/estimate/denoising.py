"""Denoising: what a call of a denoiser takes, forward, swept backward and quantized, and what it keeps.

The denoiser is made without memory for its weights. Its survey comes from a call of it there, and its blocks are
counted one of a kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from adatsq_pipe.pipeline.estimate.geometry import Geometry
from adatsq_pipe.pipeline.estimate.inputs import NoInputs, inputs_of, meta_tensors
from adatsq_pipe.pipeline.estimate.probe import Probe
from adatsq_pipe.pipeline.estimate.trace import Cost, cost_of, held_by
from adatsq_pipe.stages.architecture.layers import block_lists, quantizable_linears
from adatsq_pipe.stages.base.survey import CallSurvey, LayerInfo
from adatsq_pipe.stages.denoiser.hooks import survey
from adatsq_pipe.stages.denoiser.inspection import on_meta
from adatsq_pipe.stages.denoiser.outputs import leaves
from adatsq_pipe.stages.methods._layer import MODULATION
from adatsq_pipe.stages.methods._recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Block:
    """A kind of repeated block: one of them with a call's arguments, and how many there are."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: Sequence[LayerInfo]
    """Its layers, by their names in it."""
    count: int

    @property
    def input(self) -> int:
        """Bytes of the first tensor that it is called with: the tokens."""
        return next((x.nbytes for x in tree_leaves((self.args, self.kwargs)) if isinstance(x, Tensor)), 0)


@dataclass(frozen=True, kw_only=True)
class Denoising:
    """One denoiser's calls for `captions` captions."""

    captions: int
    survey: CallSurvey
    blocks: Sequence[Block]
    sizes: Mapping[str, int]
    """Numbers by tensor."""
    forward: Cost
    backward: Cost
    """A forward and a backward pass with the effects of rounding."""
    quantized: Cost
    rest: float
    """FLOPs of a forward pass outside the blocks, over those inside."""
    held: int
    """Bytes that a forward pass keeps for a backward pass, of all blocks."""
    held_by_block: int
    """Of the block that keeps most."""
    sample: int
    """Bytes of the noisy sample of a call."""
    output: int
    """Bytes of the denoiser's answer."""
    rows: Mapping[str, int]
    """Rows of the input of every layer in a call."""
    assumed: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        return sum(self.sizes.values())


def denoising_of(
    config: Mapping[str, Any], at: Geometry, *, captions: int, dtype: str, recipe: Recipe, where: object
) -> Denoising:
    """What a call of the denoiser of `config` takes. Raises NotTaken if no model can be made of it."""
    kind = getattr(torch, dtype)
    model = on_meta(config, where).to(kind).eval().requires_grad_(False)
    linears = quantizable_linears(model)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    try:
        asked = inputs_of(model, config, at, captions, meta_tensors(kind))
        firsts: dict[str, tuple[Any, Any]] = {}
        outputs = list[Any]()
        with torch.no_grad(), _first_calls(model, firsts):
            seen = survey(lambda: outputs.append(model(**asked)), linears, captions)
    except NoInputs as error:
        return _by_shapes(model, at, captions, kind, f"no call of {type(model).__name__} is known ({error})")
    except Exception as error:  # whatever a model's forward raises without numbers
        why = f"{type(model).__name__} does not run without weights ({type(error).__name__}: {error})"
        return _by_shapes(model, at, captions, kind, " ".join(why.split())[:300])
    blocks = _kinds(model, firsts, seen)
    forward, backward, quantized, held, most, ones = Cost(), Cost(), Cost(), 0, 0, Cost()
    for block in blocks:
        probe = Probe(block.module, block.args, block.kwargs, block.rows, recipe, False)
        own, kept = cost_of(probe.forward), held_by(probe.kept)
        ones += own
        forward, backward = forward + own * block.count, backward + cost_of(probe.backward) * block.count
        run = probe.quantized(at.steps)
        run()  # the weights are dequantized once
        quantized += cost_of(run) * block.count
        held, most = held + kept * block.count, max(most, kept)
    about = _less(_of_one_each(model, asked, blocks), ones)
    return Denoising(
        captions=captions,
        survey=seen,
        blocks=blocks,
        sizes=sizes,
        forward=replace(forward + about, peak=max(forward.peak, about.peak)),
        backward=replace(backward + about * 2, peak=held + max(0.0, backward.peak - most)),
        quantized=replace(quantized + about, peak=max(quantized.peak, about.peak)),
        rest=about.total / forward.total if forward.total else 0.0,
        held=held,
        held_by_block=most,
        sample=_bytes(asked[next(iter(asked))]),
        output=sum(leaf.nbytes for leaf in leaves(outputs[0])),
        rows={row.name: (row.macs or 0) * captions // row.size for row in seen.layers},
    )


def _less(whole: Cost, part: Cost) -> Cost:
    """What is left of a computation without a part of it; the peak stays."""
    return Cost(
        flops={kind: max(0.0, count - part.flops.get(kind, 0.0)) for kind, count in whole.flops.items()},
        traffic=max(0.0, whole.traffic - part.traffic),
        kernels=max(0.0, whole.kernels - part.kernels),
        peak=whole.peak,
    )


def _of_one_each(model: nn.Module, asked: Mapping[str, Any], blocks: Sequence[Block]) -> Cost:
    """What a forward pass takes of the denoiser with a single block of every kind; the model is left so."""
    kept = {block.name for block in blocks}
    for stack, modules in block_lists(model).items():
        if isinstance(modules, nn.ModuleList):
            chosen = [block for name, block in modules.named_children() if f"{stack}.{name}" in kept]
            model.set_submodule(stack, nn.ModuleList(chosen))
    with torch.no_grad():
        return cost_of(lambda: model(**asked))


@contextmanager
def _first_calls(model: nn.Module, firsts: dict[str, tuple[Any, Any]]) -> Iterator[None]:
    """Inside, `firsts` takes the arguments of the first call of every block, by its name."""
    handles = []
    for stack, blocks in block_lists(model).items():
        for name, block in blocks.named_children():

            def see(module: nn.Module, args: Any, kwargs: Any, at: str = f"{stack}.{name}") -> None:
                firsts.setdefault(at, tree_map(_detached, (args, kwargs)))

            handles.append(block.register_forward_pre_hook(see, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _kinds(model: nn.Module, firsts: Mapping[str, tuple[Any, Any]], seen: CallSurvey) -> list[Block]:
    """One block of every kind: of one class, with the same layers."""
    found: dict[object, Block] = {}
    for name, (args, kwargs) in firsts.items():
        module = model.get_submodule(name)
        rows = [_inside(row, f"{name}.") for row in seen.layers if row.name.startswith(f"{name}.")]
        if not rows:
            continue
        kind = (type(module), tuple((row.name, row.in_features, row.out_features, row.macs) for row in rows))
        before = found.get(kind)
        found[kind] = (
            replace(before, count=before.count + 1)
            if before
            else Block(name=name, module=module, args=args, kwargs=kwargs, rows=rows, count=1)
        )
    return list(found.values())


def _inside(row: LayerInfo, prefix: str) -> LayerInfo:
    return replace(row, name=row.name.removeprefix(prefix), input_of=row.input_of.removeprefix(prefix))


def _bytes(value: Any) -> int:
    return sum(x.nbytes for x in (value if isinstance(value, list) else [value]))


def _by_shapes(model: nn.Module, at: Geometry, captions: int, kind: torch.dtype, why: str) -> Denoising:
    """A denoiser whose call is not known: every linear in its blocks sees all places of the latents in 2 x 2 patches,
    and the caption."""
    tokens, size = at.area // 4 + at.text, torch.empty((), dtype=kind).element_size()
    rows, seen = captions * at.halves, dict[str, int]()
    layers = []
    for name, linear in quantizable_linears(model).items():
        vector = any(part in name.lower() for part in MODULATION)
        seen[name] = rows if vector else rows * tokens
        layers.append(
            LayerInfo(
                name=name,
                in_features=linear.in_features,
                out_features=linear.out_features,
                role="conditioning" if vector else "tokens",
                input_of=name,
                macs=at.halves * (1 if vector else tokens) * linear.in_features * linear.out_features,
            )
        )
    numbers = sum(seen[row.name] * (row.in_features + row.out_features) for row in layers)
    flops = 2.0 * captions * sum(row.macs or 0 for row in layers)
    name = {torch.float32: "float32", torch.float64: "float64"}.get(kind, "half")
    most = max((seen[row.name] * (row.in_features + row.out_features) for row in layers), default=0)
    one = Cost(flops={name: flops}, traffic=4.0 * size * numbers, kernels=10.0 * len(layers), peak=4.0 * size * most)
    effects = Cost(flops={"float32": flops}, traffic=30.0 * 4 * numbers, kernels=100.0 * len(layers))
    sample = size * rows * at.latents[0] * at.area
    return Denoising(
        captions=captions,
        survey=CallSurvey(layers=tuple(layers), unused=(), repeated=()),
        blocks=(),
        sizes={name: parameter.numel() for name, parameter in model.named_parameters()},
        forward=one,
        backward=replace(one * 2 + effects, peak=float(size * numbers)),
        quantized=replace(one * 1.7, peak=1.5 * one.peak),
        rest=0.0,
        held=size * numbers,
        held_by_block=8 * size * most,
        sample=sample,
        output=sample,
        rows=seen,
        assumed=(f"{why}: all its linears are taken to see {tokens} tokens a caption, and attention is not counted",),
    )
