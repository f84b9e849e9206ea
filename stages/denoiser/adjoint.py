"""The trajectory adjoint: the gradient of a run's final latents with respect to every layer's output at every call.

A pipeline's own loop is replayed with recorded outputs, with autograd on. A recorded output's backward runs the real
denoiser once with gradients at the recorded inputs. So one sweep costs a forward and a backward pass per call, and no
activations of two calls are held at once.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from adatsq_pipe.stages.denoiser.block_offload import checkpoint_blocks
from adatsq_pipe.stages.denoiser.call import Call, Trajectory
from adatsq_pipe.stages.denoiser.conditions import Conditions
from adatsq_pipe.stages.denoiser.denoiser import Denoiser
from adatsq_pipe.stages.denoiser.outputs import Output, leaves, of_samples, rebuild, structure
from adatsq_pipe.stages.numerics.products import linear


class NotDifferentiable(Exception):
    """The pipeline's loop gives latents that no gradient reaches; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """One pass of a gradient through one linear layer.

    `x` [rows, ..., in] is the layer's input, `weight` [out, in], `output_gradient` [rows, ..., out] the derivative of
    the scalar product of the final latents with a direction.
    """

    layer: str
    call: Call
    samples: range
    """The call's samples whose rows these are; all of them unless memory has run out."""
    x: Tensor
    weight: Tensor
    output_gradient: Tensor
    through: Tensor | None
    """The input's gradient, where the backward pass needs it."""

    @functools.cached_property
    def input_gradient(self) -> Tensor:
        """[rows, ..., in], the derivative through this layer alone; computed if the backward pass had no need of it."""
        return linear(self.output_gradient, self.weight.T) if self.through is None else self.through


See = Callable[[Crossing], None]


def sweep(
    denoiser: Denoiser,
    conditions: Conditions,
    recorded: Trajectory,
    direction: Tensor,
    layers: Mapping[str, nn.Linear],
    see: See,
    *,
    recomputed: Sequence[nn.Module] = (),
) -> None:
    """Carry the gradient of <direction, final latents> back through a recorded run; `see` gets every crossing.

    `direction` has the shape of the final latents. `recomputed` are blocks whose activations the backward pass
    computes again. Raises NotDifferentiable, and what the pipeline's own call raises.
    """
    adjoint = _Adjoint(denoiser, recorded, layers, see, recomputed)
    latents = adjoint.replay(conditions)
    torch.autograd.backward([latents], [direction.to(latents)])


def obstacle(denoiser: Denoiser, conditions: Conditions, recorded: Trajectory) -> str:
    """Why no gradient can be carried through the pipeline's loop, or ""; costs no call of the denoiser."""
    adjoint = _Adjoint(denoiser, recorded, {}, lambda crossing: None, (), dry=True)
    try:
        latents = adjoint.replay(conditions)
        torch.autograd.backward([latents], [torch.ones_like(latents)])
    except NotDifferentiable as error:
        return str(error)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a pipeline's own code raises under autograd
        return f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return ""


def _float_leaves(value: Any) -> list[Tensor]:
    """The floating-point tensors of a call's arguments, in a fixed order."""
    return [x for x in leaves(value) if x.is_floating_point()]


def _with_leaves(value: Any, tensors: Iterator[Tensor]) -> Any:
    """`value` with its floating-point tensors replaced, in the order of `_float_leaves`."""
    if isinstance(value, Tensor):
        return next(tensors) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _with_leaves(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_with_leaves(item, tensors) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


class _Recorded(torch.autograd.Function):
    """A recorded output in the forward pass, the real denoiser in the backward pass."""

    @staticmethod
    def forward(ctx: Any, adjoint: _Adjoint, place: int, call: Call, anchor: Tensor, *inputs: Tensor) -> Any:
        ctx.adjoint, ctx.place, ctx.call = adjoint, place, call
        ctx.save_for_backward(*inputs)
        return tuple(leaf.clone() for leaf in leaves(adjoint.recorded.outputs[place]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        wanted = ctx.needs_input_grad[4:]
        if ctx.adjoint.dry:
            through = [
                torch.zeros_like(x) if needed else None for x, needed in zip(ctx.saved_tensors, wanted, strict=True)
            ]
        else:
            output = ctx.adjoint.recorded.outputs[ctx.place]
            through = ctx.adjoint.backward(ctx.call, output, ctx.saved_tensors, wanted, gradients)
        return None, None, None, None, *through


class _Crossed(torch.autograd.Function):
    """A linear layer that shows its gradients as they pass."""

    @staticmethod
    def forward(ctx: Any, show: Callable[..., None], anchor: Tensor, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        ctx.show = show
        ctx.save_for_backward(x, weight)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        through = linear(gradient, weight.T) if ctx.needs_input_grad[2] else None
        ctx.show(x, weight, gradient, through)
        return None, None, through, None, None


class _Adjoint:
    """One sweep: the denoiser, the recorded run, and who sees the gradients."""

    def __init__(
        self, denoiser: Denoiser, recorded: Trajectory, layers: Mapping[str, nn.Linear], see: See,
        recomputed: Sequence[nn.Module], *, dry: bool = False,
    ) -> None:  # fmt: skip
        self.denoiser, self.recorded, self.layers, self.see = denoiser, recorded, layers, see
        self.recomputed, self.dry = recomputed, dry
        """Dry: no call of the denoiser, and zeros for its gradients."""
        self._anchor = torch.zeros((), requires_grad=True)
        self._copies: dict[int, tuple[weakref.ref[Tensor], int, Tensor]] = {}

    def replay(self, conditions: Conditions) -> Tensor:
        """The final latents, with the graph of the pipeline's loop."""

        def answer(place: int, call: Call) -> Output:
            output = self.recorded.outputs[place]
            inputs = [self._copy(x) for x in _float_leaves([call.args, call.kwargs])]
            args, kwargs = _with_leaves([call.args, call.kwargs], (x.detach() for x in inputs))
            call = replace(call, args=args, kwargs=kwargs)
            tensors: tuple[Tensor, ...] = _Recorded.apply(self, place, call, self._anchor, *inputs)  # type: ignore[no-untyped-call]
            return rebuild(structure(output), iter(tensors))

        latents = self.denoiser.differentiable(conditions, answer)
        self._copies.clear()
        if not isinstance(latents, Tensor) or not latents.requires_grad:
            raise NotDifferentiable("the pipeline's loop cuts the final latents off from the denoiser's outputs")
        result: Tensor = latents
        return result

    def _copy(self, x: Tensor) -> Tensor:
        """A copy of a call's input, because loops (Kandinsky's) write into their latents; one copy serves all calls
        that get the same tensor unchanged."""
        if x.requires_grad:
            return x.clone()
        before = self._copies.get(id(x))
        if before is None or before[0]() is not x or before[1] != x._version:
            before = self._copies[id(x)] = (weakref.ref(x), x._version, x.clone())
        return before[2]

    def backward(
        self, call: Call, output: Output, inputs: Sequence[Tensor], wanted: Sequence[bool], gradients: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """The gradients of a call's float inputs, from those of its `output`: the real denoiser runs once, in parts
        that fit."""
        with torch.enable_grad(), checkpoint_blocks(self.recomputed):
            sources = [x.detach().requires_grad_(needed) for x, needed in zip(inputs, wanted, strict=True)]
            args, kwargs = _with_leaves([call.args, call.kwargs], iter(sources))
            parts, start = self.denoiser.cut(replace(call, args=args, kwargs=kwargs)), 0
            of, along = sum(size for _, size in parts), rebuild(structure(output), iter(gradients))
            for part, size in parts:
                with self._shown(call, range(start, start + size)):
                    outputs = leaves(self.denoiser.parts[part.part].forward(*part.args, **part.kwargs))
                    own = leaves(of_samples(along, of, start, start + size)) if len(parts) > 1 else leaves(along)
                    pairs = [(o, g) for o, g in zip(outputs, own, strict=True) if o.requires_grad]
                    torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
                start += size
        return [x.grad if needed else None for x, needed in zip(sources, wanted, strict=True)]

    @contextmanager
    def _shown(self, call: Call, samples: range) -> Iterator[None]:
        """Inside, the layers' forwards show the gradients that pass them."""
        before = {name: layer.__dict__.get("forward") for name, layer in self.layers.items()}
        anchor = self._anchor

        def showing(name: str, layer: nn.Linear) -> Callable[[Tensor], Tensor]:
            def show(x: Tensor, weight: Tensor, gradient: Tensor, through: Tensor | None) -> None:
                self.see(
                    Crossing(
                        layer=name, call=call, samples=samples, x=x, weight=weight,
                        output_gradient=gradient, through=through,
                    )
                )  # fmt: skip

            def forward(x: Tensor) -> Tensor:
                if not torch.is_grad_enabled():
                    return linear(x, layer.weight, layer.bias)
                crossed: Tensor = _Crossed.apply(show, anchor, x, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
                return crossed

            def present(x: Tensor) -> Tensor:
                with self.denoiser.present(layer):
                    return forward(x)

            return present

        for name, layer in self.layers.items():
            layer.__dict__["forward"] = showing(name, layer)
        try:
            yield
        finally:
            for name, layer in self.layers.items():
                del layer.__dict__["forward"]
                if before[name] is not None:
                    layer.__dict__["forward"] = before[name]
