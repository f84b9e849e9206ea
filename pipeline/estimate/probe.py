"""Probe: the three ways in which a run computes a denoiser, or one block of it: forward, swept backward, quantized.

The same code runs on the meta device, where it is counted, and on a real one, where it is timed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adatsq_pipe.stages.base.survey import LayerInfo
from adatsq_pipe.stages.calibration.effects import WIDTHS
from adatsq_pipe.stages.calibration.layer_rounding import LayerRounding
from adatsq_pipe.stages.calibration.sweep_worker import _Memory
from adatsq_pipe.stages.denoiser.adjoint import Crossing, _Adjoint, _float_leaves, _with_leaves
from adatsq_pipe.stages.denoiser.call import Call, Trajectory
from adatsq_pipe.stages.denoiser.outputs import leaves
from adatsq_pipe.stages.methods._layer import spec_of
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY
from adatsq_pipe.stages.numerics.sensitivity import squared_gradient_mean
from adatsq_pipe.stages.numerics.transform import rotate
from adatsq_pipe.stages.numerics.weight_grid import weight_grid
from adatsq_pipe.stages.runtime.model import replace_linears
from adatsq_pipe.stages.runtime.policy_hook import drop_shared_input, set_bits

PART = "part"


@dataclass
class _One:
    """What the adjoint asks of a denoiser, of one module."""

    parts: dict[str, nn.Module]
    offload: None = None

    def cut(self, call: Call) -> list[tuple[Call, int]]:
        return [(call, 1)]

    def present(self, module: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass
class Probe:
    """A module, the arguments of one call of it, and its layers; `rows` name them below the module."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: Sequence[LayerInfo]
    recipe: Recipe
    keeps_errors: bool
    """Whether the sweep's worker has room for the weights' rounding errors (as it does on a CPU)."""
    output: Any = None
    """Of a forward pass."""
    _rounding: dict[str, LayerRounding] = field(default_factory=dict)
    _memory: _Memory = field(default_factory=lambda: _Memory(0))

    def __post_init__(self) -> None:
        self.module.requires_grad_(False)
        self._rounding = {row.name: LayerRounding(self.recipe, i, row) for i, row in enumerate(self.rows)}
        for row in self.rows:  # the clipping ratio is searched once for a worker, not at each call
            self._rounding[row.name]._grid = weight_grid(
                self._linear(row).weight.float(),
                bits=spec_of(self.recipe, row).weight_bits, group=spec_of(self.recipe, row).group,
                symmetric=self.recipe.weight_symmetric, clip=False,
            )  # fmt: skip
        sizes = sum(row.size for row in self.rows)
        self._memory = _Memory(8 * sizes if self.keeps_errors else 0)
        self.output = self.forward()

    def _linear(self, row: LayerInfo) -> nn.Linear:
        found = self.module.get_submodule(row.name)
        assert isinstance(found, nn.Linear)
        return found

    @torch.no_grad()
    def forward(self) -> Any:
        """One forward pass in full precision."""
        return self.module(*self.args, **self.kwargs)

    def backward(self) -> None:
        """What `fisher` does at a call: one forward and one backward pass, and the effects at every layer."""
        adjoint, call, inputs, wanted = self._adjoint()
        adjoint.backward(call, self.output, inputs, wanted, [torch.ones_like(leaf) for leaf in leaves(self.output)])

    def kept(self) -> object:
        """A forward pass with everything that it keeps for the backward pass."""
        adjoint, call, inputs, wanted = self._adjoint()
        with torch.enable_grad(), adjoint._shown(call, range(1)):
            sources = [x.detach().requires_grad_(needed) for x, needed in zip(inputs, wanted, strict=True)]
            args, kwargs = _with_leaves([call.args, call.kwargs], iter(sources))
            return self.module(*args, **kwargs)

    def _adjoint(self) -> tuple[_Adjoint, Call, list[Tensor], list[bool]]:
        call = Call(args=self.args, kwargs=self.kwargs, step=0, timestep=0.0, part=PART)
        layers = {row.name: self._linear(row) for row in self.rows}
        inputs = _float_leaves([call.args, call.kwargs])
        first = next((i for i, x in enumerate(inputs) if x.dim() > 1), 0)
        wanted = [i == first for i in range(len(inputs))]
        recorded = Trajectory(outputs=(self.output,), steps=(0,), timesteps=(0.0,), latents=torch.zeros(()))
        see = self._swept if self.recipe.sensitivity == "trajectory" else self._scored
        adjoint = _Adjoint(_One({PART: self.module}), recorded, layers, see, ())  # type: ignore[arg-type]
        return adjoint, call, inputs, wanted

    @torch.no_grad()
    def _swept(self, crossing: Crossing) -> None:
        """What the sweep does at a layer."""
        rounding, row = self._rounding[crossing.layer], self._row(crossing.layer)
        rounding.of_weight(crossing, self._memory.take)
        if not row.rounded:
            return
        gradient = crossing.input_gradient
        if row.owns_input:
            rounding.of_tokens(crossing.x.detach(), [gradient], step=crossing.call.step)
        else:  # a shared input is rounded once; each layer has a product of its own with every width's error
            turned = rotate(gradient.float(), rounding.spec.rotation(dtype=torch.float32, device=gradient.device))
            for _ in WIDTHS:
                (turned * turned).flatten(1).sum(1)

    @torch.no_grad()
    def _scored(self, crossing: Crossing) -> None:
        squared_gradient_mean(crossing.x, crossing.output_gradient)

    def _row(self, name: str) -> LayerInfo:
        return next(row for row in self.rows if row.name == name)

    def quantized(self, steps: int) -> Callable[[], Any]:
        """A forward pass with quantized layers, as search and evaluate run it: weights dequantized, inputs rounded."""
        module = copy.deepcopy(self.module)
        specs = {row.name: spec_of(self.recipe, row) for row in self.rows}
        layers = replace_linears(module, specs, steps=steps)
        with torch.no_grad():
            for layer in layers.values():
                layer.scale.fill_(1.0)
        bits = self.recipe.activation_bits
        set_bits(layers.values(), [bits if row.rounded else WEIGHT_ONLY for row in self.rows])

        def forward() -> Any:
            for layer in layers.values():
                drop_shared_input(layer)
            with torch.no_grad():
                return module(*self.args, **self.kwargs)

        return forward
