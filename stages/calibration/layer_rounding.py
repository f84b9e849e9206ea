"""LayerRounding: how a recipe rounds one layer, and the effects of it on a scalar whose gradients are known.

An input x less its step's shift is taken to the basis of the codes by a matrix M, z = (x - s) M; the weight there is
W_z = W M^-T, so that z W_z^T = (x - s) W^T. A gradient at the input goes to the basis as the weight does. The weight's
error E_z in the basis acts on the layer's own input as E_z M^T, and on what is left of it by the shift, whose product
with the weight is not rounded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from adatsq_pipe.stages.base.survey import LayerInfo
from adatsq_pipe.stages.calibration.effects import WIDTHS
from adatsq_pipe.stages.calibration.input_transform import Basis, stored_grid
from adatsq_pipe.stages.calibration.layer_inputs import Shift
from adatsq_pipe.stages.denoiser.adjoint import Crossing
from adatsq_pipe.stages.methods._layer import spec_of
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.numerics.effects import activation_effects, weight_effects
from adatsq_pipe.stages.numerics.grid import Grid, dequantize, quantize
from adatsq_pipe.stages.numerics.transform import rotate, rotate_back, rotate_twice
from adatsq_pipe.stages.runtime.spec import LayerSpec


class LayerRounding:
    """The basis of the codes, the grid of the weight, the grids of tokens."""

    def __init__(self, recipe: Recipe, place: int, row: LayerInfo) -> None:
        self.place, self.rounded, self.recipe = place, row.rounded, recipe
        self.spec = spec_of(recipe, row)
        self.shift: Shift | None = None
        self._stored = dict[str, Tensor]()
        """What the basis has besides a Hadamard matrix: order, smooth, rotations with the order between."""
        self._grid: Grid | None = None
        self._weight_error: Tensor | None = None

    def use(self, basis: Basis, shift: Shift | None) -> None:
        """Take the basis that was found for the layer, and the shift of its input."""
        self._stored, self.shift = basis.tensors, shift

    @property
    def key(self) -> tuple[object, ...]:
        """Equal in layers that round the same input alike."""
        spec = self.spec
        own = self.place if self.shift or self._stored.keys() & {"order", "smooth"} else None
        return spec.block, spec.regular, spec.symmetric_activations, spec.activation_group, own

    def of_tokens(self, x: Tensor, gradients: Sequence[Tensor], step: int) -> list[Tensor]:
        """Effects of rounding the tokens of the input `x` of a step, [rows, widths], by gradient."""
        symmetric, group = self.spec.symmetric_activations, self.spec.activation_group
        basis = _rotation(self.spec, x.device)
        x, gradients = self._ordered(self._shifted(x, step)), [self._ordered(each, inverse=True) for each in gradients]
        if "rotations" in self._stored:
            x, gradients = self._rotated(x), [self._rotated(each) for each in gradients]
            basis = torch.ones(1, 1, device=x.device)
        return activation_effects(x, gradients, basis, WIDTHS, symmetric=symmetric, group=group)

    def of_weight(self, crossing: Crossing, take: Callable[[int], bool]) -> Tensor:
        """Effects of rounding the weight, [rows]. `take` says whether so many bytes of its error may be kept."""
        error = self._weight_error
        if error is None:
            error = self._error(crossing.weight)
            if take(error.nbytes):
                self._weight_error = error
        return weight_effects(self._shifted(crossing.x, crossing.call.step), crossing.output_gradient, error)

    def _shifted(self, x: Tensor, step: int) -> Tensor:
        if self.shift is None:
            return x
        return x.float() - self.shift.value_GI[self.shift.place[step]].to(x.device).float()

    def _ordered(self, x: Tensor, *, inverse: bool = False) -> Tensor:
        """Inputs [..., in] in the layer's order of channels and smoothed; a weight or a gradient with `inverse`, which
        divides by what inputs are multiplied by."""
        if "order" in self._stored:
            x = x.index_select(-1, self._on("order", x.device))
        if "smooth" in self._stored:
            smooth = self._on("smooth", x.device).float()
            x = x.float() / smooth if inverse else x.float() * smooth
        return x

    def _rotated(self, x: Tensor) -> Tensor:
        """`x` [..., in] rotated, float32."""
        if "rotations" in self._stored:
            return rotate_twice(x.float(), self._on("rotations", x.device), self._on("between", x.device))
        return rotate(x.float(), _rotation(self.spec, x.device))

    def _to_inputs(self, error_OI: Tensor) -> Tensor:
        """A weight's error in the basis as it acts on the layer's own inputs."""
        if "rotations" in self._stored:
            device = error_OI.device
            error_OI = rotate_back(error_OI, self._on("rotations", device), self._on("between", device))
        else:
            error_OI = rotate(error_OI, _rotation(self.spec, error_OI.device))  # a Hadamard matrix is its own inverse
        if "smooth" in self._stored:
            error_OI = error_OI * self._on("smooth", error_OI.device).float()
        if "order" in self._stored:
            order = self._on("order", error_OI.device).long()
            error_OI = torch.empty_like(error_OI).index_copy_(-1, order, error_OI)
        return error_OI

    def _on(self, name: str, device: torch.device) -> Tensor:
        self._stored[name] = self._stored[name].to(device)
        return self._stored[name]

    def _error(self, weight: Tensor) -> Tensor:
        """Rounding to nearest less the weight, for the layer's own inputs. Of weights in bfloat16 the error is too, so
        that its product costs no more than the layer's own."""
        weight_OI = self._rotated(self._ordered(weight, inverse=True))
        if self._grid is None:
            self._grid = stored_grid(self.recipe, self.spec, weight_OI)
        columns = self._grid.columns(weight_OI.shape[1])
        codes = quantize(weight_OI, *columns, self._grid.qmax)
        error = self._to_inputs(dequantize(codes, *columns).sub_(weight_OI))
        return error.to(weight.dtype) if weight.dtype == torch.bfloat16 else error


@functools.cache
def _rotation(spec: LayerSpec, device: torch.device) -> Tensor:
    return spec.rotation(dtype=torch.float32, device=device)
