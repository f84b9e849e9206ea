"""The basis in which a layer's codes live: channels put in order, smoothed, rotated; the same for weight and input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.calibration import inputs, rotations
from adatsq_pipe.stages.calibration.layer_inputs import LayerInputs
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.numerics import smoothing, transform
from adatsq_pipe.stages.numerics.grid import Grid, dequantize, fake_quantize_tokens, quantize
from adatsq_pipe.stages.numerics.weight_grid import weight_grid
from adatsq_pipe.stages.runtime.spec import LayerSpec

OUTLIERS = (0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Shares of a layer's channels that migration tries as outliers."""

_STRIP = 256
"""Rows of a Gram matrix whose columns are put in order at a time."""


@dataclass(frozen=True, kw_only=True)
class Basis:
    """`tensors` as the layer stores them (order, smooth, rotations with the order between), and the block of the
    rotation. `folded` [in] is what the layer before multiplies the input's channels by."""

    tensors: dict[str, Tensor]
    block: int
    regular: bool = False
    folded: Tensor | None = None

    def of_rows(self, x_NI: Tensor) -> Tensor:
        """Inputs in this basis, dtype kept."""

        x = x_NI if self.folded is None else x_NI * self.folded.to(x_NI.dtype)
        if "order" in self.tensors:
            x = x[:, self.tensors["order"].long()]
        if "smooth" in self.tensors:
            x = x * self.tensors["smooth"].to(x.dtype)
        return self._rotated(x)

    def of_weight(self, w_OI: Tensor) -> Tensor:
        """A weight in this basis, float32."""
        w = w_OI.double()
        if self.folded is not None:
            w = w / self.folded.double()
        if "order" in self.tensors:
            w = w[:, self.tensors["order"].long()]
        if "smooth" in self.tensors:
            w = w / self.tensors["smooth"].double()
        return self._rotated(w).float()

    def of_gram(self, gram_II: Tensor) -> Tensor:
        """The inputs' Gram matrix in this basis, dtype kept.

        `gram_II` is used up: the result is made in its memory, except where channels are put in order or rotated twice.
        """
        gram = gram_II
        if self.folded is not None:
            _scale(gram, self.folded)
        if "order" in self.tensors:
            order = self.tensors["order"].long()
            gram = gram[order]
            for rows in gram.split(_STRIP):
                rows.copy_(rows[:, order])
        if "smooth" in self.tensors:
            _scale(gram, self.tensors["smooth"])
        if "rotations" in self.tensors:
            return self._rotated(self._rotated(gram).T).T
        return transform.rotate_gram(gram, self._rotation(gram))

    def _rotated(self, x: Tensor) -> Tensor:
        if "rotations" in self.tensors:
            return transform.rotate_twice(x, self.tensors["rotations"].to(x.dtype), self.tensors["between"])
        return transform.rotate(x, self._rotation(x))

    def _rotation(self, like: Tensor) -> Tensor:
        return transform.hadamard(self.block, dtype=like.dtype, device=like.device, regular=self.regular)

    @property
    def shared(self) -> bool:
        """Whether every layer of this block and input has this basis."""
        return not self.tensors and self.folded is None


def _scale(gram_II: Tensor, factor_I: Tensor) -> None:
    """Multiply the channels of a Gram matrix in place."""
    factor = factor_I.to(gram_II.dtype)
    gram_II.mul_(factor).mul_(factor.unsqueeze(1))


def bases(recipe: Recipe, found_in: LayerInputs, spec: LayerSpec, w_OI: Tensor) -> list[Basis]:
    """The bases a recipe offers a layer with these inputs: one, or one for every smoothing that it would try."""

    fixed, w = dict[str, Tensor](), w_OI.double()
    if spec.permuted and recipe.channel_order == "moment":
        fixed["order"] = order_by_moment(found_in, w)
    elif spec.permuted:
        random = np.random.default_rng(list(found_in.row.name.encode()))
        fixed["order"] = torch.from_numpy(random.permutation(w.shape[1])).to(w.device).int()
    if spec.permuted:
        w = w[:, fixed["order"].long()]
    if not spec.smoothed:
        return [_rotating(recipe, found_in, spec, fixed)]
    size = channel_sizes(recipe, found_in.peaks(), w_OI)
    size = size[fixed["order"].long()] if spec.permuted else size
    if recipe.smoothing == "migration":
        factors = [smoothing.whole_factors(size, int(len(size) * share)) for share in OUTLIERS]
    else:
        factors = [smoothing.smoothquant(size, w, alpha=alpha) for alpha in exponents(recipe)]
    return [_rotating(recipe, found_in, spec, {**fixed, "smooth": (1 / factor).bfloat16()}) for factor in factors]


def _rotating(recipe: Recipe, found_in: LayerInputs, spec: LayerSpec, fixed: dict[str, Tensor]) -> Basis:
    """The basis that rotates inputs as a spec has it after `fixed`."""
    if not spec.dual:
        return Basis(tensors=fixed, block=spec.block, regular=spec.regular)
    before = Basis(tensors=fixed, block=1)
    rows = (before.of_rows(x).cpu() for _, x in found_in)
    found = rotations.rotations_of(rows, found_in.row.input_of, block=spec.block, steps=recipe.rotation_steps)
    on_device = {name: tensor.to(found_in.device) for name, tensor in found.items()}
    return Basis(tensors={**fixed, **on_device}, block=spec.block)


def best_basis(
    recipe: Recipe,
    found_in: LayerInputs,
    spec: LayerSpec,
    w_OI: Tensor,
    error_in: Callable[[Basis], float] | None = None,
) -> tuple[Basis, LayerSpec]:
    """The basis in which a layer's output errs least of those that a recipe offers, and the spec with what it has.

    `error_in` says how much it errs, without which tokens and weight are rounded to nearest. An order by moments is
    left out where the channels' own errs no more. All are judged at the recipe's weight bits, also in layers that get
    others, so that sensitivities and weights are of one basis.
    """
    at = judged_at(recipe, spec)

    def nearest(basis: Basis) -> float:
        return rounded_error(found_in, basis, w_OI, lambda w: stored_grid(recipe, at, w), recipe, at)

    offered = bases(recipe, found_in, spec, w_OI)
    own = min(offered, key=error_in or nearest) if len(offered) > 1 else offered[0]
    if recipe.channel_order == "moment" and spec.permuted:
        old = Basis(tensors={}, block=own.block, regular=own.regular)
        if nearest(own) >= nearest(old):
            return old, replace(spec, permuted=False)
    return own, spec


def judged_at(recipe: Recipe, spec: LayerSpec) -> LayerSpec:
    """The spec with which bases of a layer are compared: that of the recipe's weight bits."""
    return replace(spec, weight_bits=recipe.weight_bits)


def stored_grid(recipe: Recipe, spec: LayerSpec, w_OI: Tensor) -> Grid:
    """The grid of a weight in its basis as the checkpoint holds it: scales in bfloat16."""
    found = weight_grid(
        w_OI, bits=spec.weight_bits, group=spec.group, symmetric=recipe.weight_symmetric, clip=recipe.weight_clip
    )
    return replace(found, scale_OG=found.scale_OG.bfloat16().float())


def order_by_moment(found_in: LayerInputs, w_OI: Tensor) -> Tensor:
    """Channels by falling product of the second moments of the input and of the weight, [in] int32 (PermuQuant,
    2605.09503)."""
    squares = torch.stack([x.double().square().mean(0) for _, x in found_in]).mean(0)
    return (squares.to(w_OI.device) * w_OI.double().square().mean(0)).argsort(descending=True, stable=True).int()


def rounded_error(
    found_in: LayerInputs,
    basis: Basis,
    w_OI: Tensor,
    grid_of: Callable[[Tensor], Grid],
    recipe: Recipe,
    spec: LayerSpec,
) -> float:
    """The squared error of a layer's output with tokens and weight rounded to nearest in a basis, over its sampled
    inputs."""
    w = basis.of_weight(w_OI)
    grid = grid_of(w)
    columns = grid.columns(w.shape[1])
    rounded = dequantize(quantize(w, *columns, grid.qmax), *columns)
    return error_with_tokens(found_in, basis, w, rounded, recipe, spec)


def error_with_tokens(
    found_in: LayerInputs, basis: Basis, w_OI: Tensor, values_OI: Tensor, recipe: Recipe, spec: LayerSpec
) -> float:
    """The squared error of x_q V^T as a stand-in for x W^T, over a layer's sampled inputs at all steps: `w_OI` and
    its rounded `values_OI` are in the basis, tokens are rounded to the recipe's activation bits."""
    total = 0.0
    for _, rows in found_in:
        x = basis.of_rows(rows)
        tokens = fake_quantize_tokens(
            x, 2.0**recipe.activation_bits - 1, symmetric=spec.symmetric_activations, group=spec.activation_group
        )
        total += float((tokens @ values_OI.T - x @ w_OI.T).double().square().sum())
    return total


def factor(context: Context, recipe: Recipe, source: str, w_OI: Tensor) -> Tensor:
    """What smoothing multiplies the channels of the input `source` by, [in] float64, for all of the layers it feeds:
    `w_OI` are their weights, one below the other."""

    size = channel_sizes(recipe, inputs.peaks(context, source).to(w_OI.device), w_OI)
    return 1 / smoothing.smoothquant(size, w_OI, alpha=recipe.smoothing_alpha)


def exponents(recipe: Recipe) -> list[float]:
    """The smoothing exponents a recipe tries."""
    count = recipe.smoothing_grid
    return [recipe.smoothing_alpha] if count == 1 else [i / (count - 1) for i in range(count)]


def channel_sizes(recipe: Recipe, peaks_TI: Tensor, w_OI: Tensor) -> Tensor:
    """The size of every input channel, [in], from its peaks at every step."""

    if recipe.smoothing_over == "salience":
        return smoothing.temporal_salience(peaks_TI, w_OI)
    if recipe.smoothing_over == "momentum":
        return smoothing.moving_average(peaks_TI)
    return peaks_TI[0] if recipe.smoothing_over == "noisiest" else peaks_TI.amax(0)
