"""Solve's worker: one layer's weight through the parts of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import ClassVar

import torch
from torch import Tensor

from adatsq_pipe.stages.architecture.folding import Fold, folds
from adatsq_pipe.stages.architecture.layers import quantizable_linears
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.settings import ComputeSettings
from adatsq_pipe.stages.base.survey import LayerInfo
from adatsq_pipe.stages.base.units import Unit, unit_of
from adatsq_pipe.stages.calibration import input_transform
from adatsq_pipe.stages.calibration.input_transform import Basis
from adatsq_pipe.stages.calibration.layer_inputs import LayerInputs, rounded_inputs
from adatsq_pipe.stages.calibration.scores import curvature_of
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.calibration.unit_keys import gram_unit
from adatsq_pipe.stages.denoiser.loading import denoiser_of
from adatsq_pipe.stages.methods._layer import spec_of
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.numerics import clipping, gptq, magnitude, symmetric, timegroups, weight
from adatsq_pipe.stages.numerics.gptq import Factor, Solution
from adatsq_pipe.stages.numerics.grid import Grid
from adatsq_pipe.stages.numerics.weight import QuantizedWeight
from adatsq_pipe.stages.runtime.spec import LayerSpec
from adatsq_pipe.stages.weights import bit_widths, group_search
from adatsq_pipe.stages.weights.solve import BITS, CHOICE, SolveSettings, _searched, sharers
from adatsq_pipe.storage import tensors


class Solve:
    """The stage's worker."""

    stage: ClassVar[str] = "solve"

    def __init__(self, context: Context) -> None:
        self.context, self.settings = context, context.settings[SolveSettings]
        self.recipe = context.settings[Recipe]
        self.device = context.settings[ComputeSettings].device
        self.rows = {row.name: row for row in survey_of(context).layers}
        self.sharers = sharers(list(self.rows.values()))
        transformer = denoiser_of(context).transformer
        self.linears = quantizable_linears(transformer)
        self._latest: tuple[tuple[str, int, bool] | None, CalibratedInput] | None = None
        self.folds: list[Fold] = []
        if self.recipe.smoothing_fold:
            for fold in folds(transformer, list(self.rows.values())):
                if all(spec_of(self.recipe, self.rows[name]).smoothed for name in fold.consumers):
                    self.folds.append(fold)

    def __call__(self, key: str) -> None:
        """Do a unit, or the task of layers that share an input (see `sharers`): what is missing of its units."""
        kind, _, name = key.partition("/")
        if kind == "layers":
            for layer in self.context.manifest(self.stage).missing([f"layer/{each}" for each in self.sharers[key]]):
                self(layer)
            return
        with unit_of(self.context, self.stage, key) as unit, torch.no_grad():
            if kind == CHOICE:
                unit.value = group_search.chosen(self.context, self.recipe, _searched(self.rows.values()))
            elif kind == BITS:
                unit.value = bit_widths.widths_of(self.context, list(self.rows.values()))
            elif kind == "sizes":
                with unit.timed("algebra"):
                    unit.value = group_search.errors_of(self.context, self.recipe, self.rows[name], self._weight(name))
            else:
                self._solve(name, unit)

    def _inputs(self, row: LayerInfo, basis: Basis, found_in: LayerInputs) -> CalibratedInput:
        """The layer's input in a basis; the latest is kept for the other layers that it feeds."""
        marker = self.context.manifest("hessian").read(gram_unit(row.input_of))
        name = marker.value[row.name]["gram"]
        key = (name, basis.block, basis.regular) if basis.shared else None
        if key is None or self._latest is None or self._latest[0] != key:
            self._latest = None  # before the next is read: a Gram matrix of FLUX's widest input takes 1.9 GB
            width = row.in_features
            # A low-rank branch takes a matrix's small directions too.
            dtype = torch.float64 if self.recipe.rank else gptq.precision(width, self.settings.damping)
            if found_in.shift is not None:
                gram = found_in.gram().to(dtype)
            else:
                _, folder = self.context.read("hessian", gram_unit(row.input_of), tensors=[name])
                gram = symmetric.whole(tensors.mapped(folder, name).to(self.device), width, dtype)
            turned = basis.of_gram(gram)
            self._latest = (key, CalibratedInput(turned, self.settings.damping, self.settings.act_order))
        return self._latest[1]

    def _weight(self, name: str) -> Tensor:
        return self.linears[name].weight.detach().to(self.device).float()

    def _spec(self, row: LayerInfo) -> LayerSpec:
        group = None
        if self.recipe.group_search and row.rounded:
            group = self.context.read("solve", CHOICE)[0].value[row.name]
        bits = None
        if self.recipe.weight_budget and row.rounded:
            bits = self.context.read("solve", BITS)[0].value[row.name]
        return spec_of(self.recipe, row, group=group, bits=bits)

    def _solve(self, name: str, unit: Unit) -> None:
        row, recipe = self.rows[name], self.recipe
        found_in, spec = rounded_inputs(self.context, recipe, row, self._spec(row), self.device)
        weight_OI = self._weight(name)
        shifts = {} if found_in.shift is None else found_in.shift.tensors(weight_OI)
        weight_OI, bias = self._producing(name, weight_OI)
        folded = self._folded(name)
        grid_of = partial(input_transform.stored_grid, recipe, spec)
        with unit.timed("algebra"):
            if folded is None:
                error_in = partial(self._error_in, found_in, input_transform.judged_at(recipe, spec), weight_OI)
                own, spec = input_transform.best_basis(recipe, found_in, spec, weight_OI, error_in)
            else:
                spec = replace(spec, smoothed=False)
                own = Basis(tensors={}, block=spec.block, regular=spec.regular, folded=folded)
            w, calibrated = own.of_weight(weight_OI), self._inputs(row, own, found_in)
            gram = calibrated.gram_II
            solver = partial(self._gptq, name, calibrated) if recipe.solver == "gptq" else None
            pressed = magnitude.smaller_weight(w, gram, penalty=recipe.magnitude_penalty) if row.rounded else w
            if spec.time_groups:
                coded, spec = self._by_time(found_in, spec, own, w, gram)
            elif spec.number_format:
                coded = weight.on_floats(w, gram, spec.number_format)
            elif spec.codebook:
                coded = weight.on_codebook(w, gram, bits=spec.weight_bits)
            else:
                coded = weight.on_grid(pressed, gram, grid_of, rank=spec.rank, rounds=recipe.rank_rounds, solver=solver)
                coded = coded if pressed is w else weight.judged_by(coded, w, gram)
            if spec.clip_bins:
                spec = self._clipped(found_in, spec, own, w, coded)
        tensors.write(unit.folder, {**coded.tensors, **own.tensors, **shifts, **bias})
        unit.value = {
            "error": coded.error,
            "damping": coded.damping,
            "spec": spec.plain(),
            "smoothing": "folded" if own.folded is not None else "on the fly" if spec.smoothed else "none",
        }

    def _error_in(self, found_in: LayerInputs, spec: LayerSpec, w_OI: Tensor, basis: Basis) -> float:
        """The output error in a basis, which chooses between those offered: of the rounded weight, and of rounded
        tokens too where outlier channels migrate or the recipe says so."""
        recipe = self.recipe
        grid_of = partial(input_transform.stored_grid, recipe, spec)
        if recipe.smoothing == "migration":
            return input_transform.rounded_error(found_in, basis, w_OI, grid_of, recipe, spec)
        w, gram = basis.of_weight(w_OI), self._inputs(found_in.row, basis, found_in).gram_II
        coded = weight.on_grid(w, gram, grid_of, rank=spec.rank)
        if recipe.smoothing_error == "weight":
            return coded.error
        meant, values = weight.beside_branch(coded, w), weight.values_of(coded, w.shape[1])
        return input_transform.error_with_tokens(found_in, basis, meant, values, recipe, spec)

    def _factor(self, fold: Fold) -> Tensor:
        """What a fold multiplies the channels of its consumers' input by."""
        joint = torch.cat([self._weight(name) for name in fold.consumers])
        return input_transform.factor(self.context, self.recipe, self.rows[fold.consumers[0]].input_of, joint)

    def _folded(self, name: str) -> Tensor | None:
        """What the layer before multiplies this layer's input by."""
        return next((self._factor(fold) for fold in self.folds if name in fold.consumers), None)

    def _producing(self, name: str, w_OI: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The weight with what is folded into its rows, and the bias that goes with it, if any is."""
        own = [fold for fold in self.folds if fold.producer == name]
        bias: Tensor | None = self.linears[name].bias
        for fold in own:
            w_OI, bias = fold.rows(w_OI, bias, self._factor(fold))
        return w_OI, {"bias": bias.detach().float()} if own and bias is not None else {}

    def _by_time(
        self, found_in: LayerInputs, spec: LayerSpec, own: Basis, w: Tensor, gram: Tensor
    ) -> tuple[QuantizedWeight, LayerSpec]:
        """The weight beside calibrated scales of its inputs, and the spec with what the inputs turned out to be."""
        steps, recipe = survey_of(self.context).steps, self.recipe
        place = timegroups.step_groups(steps, spec.time_groups)
        groups = max(place) + 1
        joined = self._by_bin(found_in, own, place)
        regions = recipe.regions and timegroups.is_gelu_output(joined)
        spec = replace(spec, time_groups=groups, regions=regions)
        start, bits = input_transform.stored_grid(recipe, spec, w), recipe.activation_bits
        if recipe.time_search:
            curvature = torch.from_numpy(curvature_of(self.context, found_in.row.name)).to(w.device)
            weights = torch.zeros(groups, len(w), dtype=torch.float64, device=w.device)
            weights.index_add_(0, torch.tensor(place, device=w.device), curvature)
            found = timegroups.calibrate(joined, w, weights, start, bits=bits, regions=regions)
        else:
            found = timegroups.min_max_calibration(joined, start, bits=bits, regions=regions)
        coded = weight.on_grid(w, gram, lambda _: found.grid)
        coded.tensors["time_group"] = torch.tensor(place, dtype=torch.uint8)
        coded.tensors["step_scale"], coded.tensors["step_zero"] = found.scale_G, found.zero_G
        return coded, spec

    @staticmethod
    def _by_bin(found_in: LayerInputs, own: Basis, place: Sequence[int]) -> list[Tensor]:
        """The layer's sampled inputs in its basis, joined by the bin or group of timesteps that `place` says."""
        rows: list[list[Tensor]] = [[] for _ in range(max(place) + 1)]
        for step, x in found_in:
            rows[place[step]].append(own.of_rows(x))
        return [torch.cat(parts) for parts in rows]

    def _clipped(
        self, found_in: LayerInputs, spec: LayerSpec, own: Basis, w: Tensor, coded: QuantizedWeight
    ) -> LayerSpec:
        """Put the clipping ratio of every bin of timesteps beside the weight; the spec with the bins that there are."""
        place = timegroups.step_groups(survey_of(self.context).steps, spec.clip_bins)
        meant, values = weight.beside_branch(coded, w), weight.values_of(coded, w.shape[1])
        ratios, _ = clipping.best_ratios(
            self._by_bin(found_in, own, place), meant, values,
            bits=self.recipe.activation_bits, symmetric=spec.symmetric_activations, group=spec.activation_group,
        )  # fmt: skip
        coded.tensors["clip_bin"], coded.tensors["step_clip"] = torch.tensor(place, dtype=torch.uint8), ratios
        return replace(spec, clip_bins=len(ratios))

    def _gptq(self, name: str, calibrated: CalibratedInput, w: Tensor, grid: Grid) -> Solution:
        try:
            return gptq.solve(w, calibrated.factor, grid)
        except ValueError as error:
            raise StageError(f"layer {name}: {error}; raise solve.damping or capture.rows") from None


class CalibratedInput:
    """The Gram matrix of a layer's input, float32 or float64 [in, in] in the basis of its codes, and its factor once
    one is needed."""

    def __init__(self, gram_II: Tensor, damping: float, act_order: bool) -> None:
        self.gram_II, self._damping, self._act_order = gram_II, damping, act_order

    @cached_property
    def factor(self) -> Factor:
        """Raises ValueError if the matrix stays singular."""
        return gptq.factor(self.gram_II, damping=self._damping, act_order=self._act_order)
