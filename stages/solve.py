"""Solve: every layer's low-bit weight, one unit a layer. Layers are independent of each other.

A weight is smoothed, rotated, relieved of what its low-rank branch takes, and rounded, as the recipe has it. Units:
`layer/<name>`: codes uint8 [out, in] (not packed), scale bfloat16 and zero uint8 [out, groups], and the tensors of the
other parts (see LayerSpec.tensors). The unit's value records the damping that was needed and the output error beside
that of rounding to nearest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from adatsq_pipe.stages import capture
from adatsq_pipe.stages.base import (
    ComputeSettings,
    Context,
    Executor,
    Report,
    Settings,
    Stage,
    StageError,
    fan_out,
    identity,
    unit_of,
)
from adatsq_pipe.stages.methods._recipe import WEIGHT_FIELDS, Recipe, resolve
from adatsq_pipe.storage.fingerprint import Plain

if TYPE_CHECKING:
    from torch import Tensor

    from adatsq_pipe.stages.numerics.gptq import Solved
    from adatsq_pipe.stages.numerics.grid import Grid
    from adatsq_pipe.stages.runtime.spec import LayerSpec


class SolveSettings(Settings):
    """[solve]"""

    damping: float = Field(default=0.01, gt=0)
    """Added to the Gram diagonal, as a share of its mean."""
    act_order: bool = True
    """Solve columns by falling Gram diagonal (groups stay static)."""


def spec_of(recipe: Recipe, row: Mapping[str, Any]) -> LayerSpec:
    """How the layer of a survey row is stored under a recipe. Group sizes that do not divide the width are refused."""
    from adatsq_pipe.stages.numerics.transform import block_size
    from adatsq_pipe.stages.runtime.spec import LayerSpec

    conditioning = row["kind"] == "conditioning"
    group = recipe.conditioning_group if conditioning else recipe.weight_group
    spec = LayerSpec(
        weight_bits=recipe.conditioning_bits if conditioning else recipe.weight_bits,
        group=group,
        block=1 if conditioning or recipe.transform == "none" else block_size(row["in"], recipe.transform_block),
        symmetric_activations=recipe.activation_symmetric,
        activation_group=0 if conditioning else recipe.activation_group,
        permuted=recipe.permuted and not conditioning,
        codebook=recipe.codebook and not conditioning,
        activation_codebook=recipe.codebook and not conditioning,
        smoothed=recipe.smoothing != "none" and not conditioning,
        rank=0 if conditioning else recipe.rank,
    )
    try:
        spec.tensors(row["in"], row["out"], 1)
    except ValueError as error:
        advice = "change it under [recipe]"
        if group and row["in"] % group:
            advice = f"set recipe.{'conditioning' if conditioning else 'weight'}_group to a divisor, or 0"
        raise StageError(f"layer {row['name']}: {error}; {advice}") from None
    return spec


class Solve:
    """The stage's worker."""

    stage: ClassVar[str] = "solve"

    def __init__(self, context: Context) -> None:
        from adatsq_pipe.stages.denoiser import quantizable_linears
        from adatsq_pipe.stages.trajectories import denoiser_of

        self.context, self.settings = context, context.settings("solve", SolveSettings)
        self.recipe = resolve(context.tables["recipe"])
        self.device = context.settings("compute", ComputeSettings).device
        self.rows = {row["name"]: row for row in capture.survey_of(context)["layers"]}
        self.linears = quantizable_linears(denoiser_of(context).transformer)

    def __call__(self, key: str) -> None:
        import torch

        from adatsq_pipe.stages.numerics import weight
        from adatsq_pipe.storage import tensors

        name = key.partition("/")[2]
        row, spec, recipe = self.rows[name], spec_of(self.recipe, self.rows[name]), self.recipe
        with unit_of(self.context, self.stage, key) as unit, torch.no_grad():
            _, folder = self.context.read("hessian", f"gram/{row['source']}", tensors=[name])
            gram = tensors.read(folder, [name])[name].to(self.device).double()
            peaks = self._peaks(row["source"]) if spec.smoothed else None
            with unit.timed("algebra"):
                w, gram, basis = self._prepared(name, gram, spec, peaks)
                if spec.codebook:
                    coded = weight.on_codebook(w, gram, bits=spec.weight_bits)
                else:
                    solver = partial(self._gptq, name) if recipe.solver == "gptq" else None
                    coded = weight.on_grid(
                        w, gram, partial(self._grid, spec), rank=spec.rank, rounds=recipe.rank_rounds, solver=solver
                    )
            tensors.write(unit.folder, {**coded.tensors, **basis})
            unit.value = {
                "error": coded.error,
                "nearest_error": coded.nearest_error,
                "damping": coded.damping,
                "spec": spec.plain(),
            }

    def _grid(self, spec: LayerSpec, w: Tensor) -> Grid:
        """The grid as the checkpoint will hold it: scales in bfloat16. The solve then makes up for their rounding."""
        from adatsq_pipe.stages.numerics.grid import weight_grid

        found = weight_grid(
            w, bits=spec.weight_bits, group=spec.group,
            symmetric=self.recipe.weight_symmetric, clip=self.recipe.weight_clip,
        )  # fmt: skip
        return replace(found, scale_OG=found.scale_OG.bfloat16().float())

    def _prepared(
        self, name: str, gram: Tensor, spec: LayerSpec, peaks: Tensor | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The weight (float32) and the Gram matrix (float64) in the basis the codes are in, and the tensors of it."""
        import numpy as np
        import torch

        from adatsq_pipe.stages.numerics import smoothing, transform

        w, basis = self.linears[name].weight.detach().double(), {}
        if spec.permuted:
            order = torch.from_numpy(np.random.default_rng(list(name.encode())).permutation(w.shape[1])).to(w.device)
            basis["order"] = order.int()
            w, gram = w[:, order], gram[order][:, order]
        if peaks is not None:
            s = smoothing.smoothquant(peaks.to(w.device), w, alpha=self.recipe.smoothing_alpha)
            basis["smooth"] = (1 / s).bfloat16()
            factor = basis["smooth"].double()
            w, gram = w / factor, gram * factor * factor.unsqueeze(1)
        h = transform.hadamard(spec.block, dtype=torch.float64, device=self.device)
        return transform.rotate(w, h).float(), transform.rotate_gram(gram, h), basis

    def _peaks(self, source: str) -> Tensor:
        """The absolute maximum of every input channel, over all tokens, steps and captions, [in]."""
        import torch

        from adatsq_pipe.storage import tensors

        name, found = f"absmax:{source}", []
        for key in capture.units(self.context)[2]:
            _, folder = self.context.read("capture", key, tensors=[name])
            found.append(tensors.read(folder, [name])[name].flatten(0, -2).amax(0))
        return torch.stack(found).amax(0)

    def _gptq(self, name: str, w: Tensor, gram: Tensor, grid: Grid) -> Solved:
        from adatsq_pipe.stages.numerics import gptq

        try:
            return gptq.solve(w, gram, grid, damping=self.settings.damping, act_order=self.settings.act_order)
        except ValueError as error:
            raise StageError(f"layer {name}: {error}; raise solve.damping or capture.rows") from None


def load_solved(context: Context, transformer: Any, policy: Any) -> dict[str, Any]:
    """Put the solved layers into `transformer` with the activation bits of `policy`; returns them by name."""
    import torch

    from adatsq_pipe.stages.runtime.linear import replace_linears
    from adatsq_pipe.stages.runtime.spec import LayerSpec
    from adatsq_pipe.storage import tensors

    rows = capture.survey_of(context)["layers"]
    specs = {row["name"]: LayerSpec(**context.read("solve", f"layer/{row['name']}")[0].value["spec"]) for row in rows}
    layers = replace_linears(transformer, specs, steps=len(policy.bits))
    for i, (name, layer) in enumerate(layers.items()):
        stored = tensors.read(context.manifest("solve").unit_folder(f"layer/{name}"))
        layer.set_tensors(stored)
        layer.policy.copy_(torch.tensor([step[i] for step in policy.bits], dtype=torch.uint8))
    return layers


def _units(context: Context) -> list[str]:
    return [f"layer/{row['name']}" for row in capture.survey_of(context)["layers"]]


def run(context: Context, executor: Executor, report: Report) -> None:
    fan_out(context, executor, Solve, _units(context), report)


def _reads(tables: Mapping[str, Any], model: str) -> Plain:
    recipe = resolve(tables["recipe"]).model_dump()
    weights = {key: recipe[key] for key in WEIGHT_FIELDS}
    return {**identity(tables, "compute", "solve"), "recipe": weights}


STAGE = Stage(
    name="solve",
    version=2,
    needs=("capture", "hessian"),
    reads=_reads,
    run=run,
    expected=lambda context: len(_units(context)),
    settings=SolveSettings,
)
