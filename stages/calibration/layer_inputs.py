"""LayerInputs: the sampled inputs of a layer as it rounds them, less the shift of their step where there is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.survey import LayerInfo
from adatsq_pipe.stages.calibration import inputs
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.numerics import gram, shift, symmetric, timegroups
from adatsq_pipe.stages.runtime.spec import LayerSpec

BATCHES = 8
"""Batches whose midpoints a shift with momentum follows: each has every eighth row of all timesteps."""


@dataclass(frozen=True, kw_only=True)
class Shift:
    """What is subtracted from a layer's input at every step."""

    place: Sequence[int]
    """The group of every step of the run."""
    value_GI: Tensor
    """bfloat16 [groups, in]."""

    def tensors(self, w_OI: Tensor) -> dict[str, Tensor]:
        """As the layer stores them; `w_OI` is its full-precision weight."""
        output = self.value_GI.double() @ w_OI.double().T
        return {
            "shift_group": torch.tensor(list(self.place), dtype=torch.uint8),
            "shift": self.value_GI,
            "shift_output": output.float(),
        }


@dataclass(frozen=True, kw_only=True)
class LayerInputs:
    """Iterates over (step, rows float32 [n, in]); of shifted inputs, over the steps alone that the layer is used at."""

    context: Context
    row: LayerInfo
    device: torch.device | str
    shift: Shift | None = None

    @property
    def steps(self) -> list[int]:
        """The steps that the layer is used at."""
        return survey_of(self.context).steps_of(self.row)

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        for step, rows in inputs.rows(self.context, self.row.input_of):
            x = rows.to(self.device).float()
            if self.shift is None:
                yield step, x
            elif step in self.steps:
                yield step, x - self.shift.value_GI[self.shift.place[step]].float()

    def peaks(self) -> Tensor:
        """The absolute maximum of every channel at every step, [steps, in]: of all tokens that the capture saw, but of
        the sampled rows where they are shifted."""
        if self.shift is None:
            return inputs.peaks(self.context, self.row.input_of).to(self.device)
        return torch.stack([x.abs().amax(0) for _, x in self])

    def after_gelu(self) -> bool:
        """Whether they look like outputs of GELU."""
        return timegroups.is_gelu_output(x for _, x in self)

    def gram(self) -> Tensor:
        """Their Gram matrix, timesteps alike, float64 [in, in]."""
        rows = [x for _, x in self]
        alike = {"": torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)}
        half = gram.weighted([[x] for x in rows], alike, device=str(self.device))[""].to(self.device)
        return symmetric.whole(half, self.row.in_features, torch.float64)

    def shifted(self, recipe: Recipe) -> LayerInputs:
        """The same inputs under the shift that a recipe gives them."""
        found = [x for step, x in self if step in self.steps]
        z_TI = torch.stack([shift.midpoint(x) for x in found])
        if recipe.shift_momentum:
            batches = [torch.cat([x[i::BATCHES] for x in found]) for i in range(BATCHES)]
            own = [0] * len(found)
            mixed = torch.stack([shift.midpoint(x) for x in batches if len(x)])
            value = shift.following(shift.midpoint(torch.cat(found)), mixed, recipe.shift_momentum).unsqueeze(0)
        else:
            own = shift.adjacent_groups(z_TI, recipe.shift_groups)
            value = shift.group_means(z_TI, own)
        place = [0] * survey_of(self.context).steps
        for step, group in zip(self.steps, own, strict=True):
            place[step] = group
        return replace(self, shift=Shift(place=place, value_GI=value.bfloat16()))


def rounded_inputs(
    context: Context, recipe: Recipe, row: LayerInfo, spec: LayerSpec, device: torch.device | str
) -> tuple[LayerInputs, LayerSpec]:
    """The inputs of a layer, shifted where the recipe shifts it, and its spec without the smoothing and the shift that
    the recipe does not give to a layer of such inputs."""
    found_in = LayerInputs(context=context, row=row, device=device)
    if not row.rounded:
        return found_in, spec
    wanted = recipe.smoothing_layers
    if wanted != "all" and found_in.after_gelu() != (wanted == "gelu"):
        return found_in, replace(spec, smoothed=False, shift_groups=0)
    if not spec.shift_groups:
        return found_in, spec
    found_in = found_in.shifted(recipe)
    assert found_in.shift is not None
    return found_in, replace(spec, shift_groups=len(found_in.shift.value_GI))
