"""Solve: every layer's low-bit weight, one unit a layer. Layers are independent of each other.

Units: `layer/<name>`: codes uint8 [out, in] (not packed), scale bfloat16 and zero uint8 [out, groups]. The unit's
value records the damping that was needed and the output error beside that of rounding to nearest.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    if group and row["in"] % group:
        raise StageError(
            f"layer {row['name']} has {row['in']} inputs, which groups of {group} do not divide; "
            f"set recipe.{'conditioning' if conditioning else 'weight'}_group to a divisor or 0"
        )
    rotated = recipe.transform == "hadamard" and not conditioning
    return LayerSpec(
        weight_bits=recipe.conditioning_bits if conditioning else recipe.weight_bits,
        group=group,
        block=block_size(row["in"], recipe.transform_block) if rotated else 1,
        symmetric_activations=recipe.activation_symmetric,
    )


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

        from adatsq_pipe.stages.numerics import gptq, transform
        from adatsq_pipe.stages.numerics.grid import decode, encode, weight_grid
        from adatsq_pipe.storage import tensors

        name = key.partition("/")[2]
        row, spec = self.rows[name], spec_of(self.recipe, self.rows[name])
        with unit_of(self.context, self.stage, key) as unit, torch.no_grad():
            _, folder = self.context.read("hessian", f"gram/{row['source']}", tensors=[name])
            gram = tensors.read(folder, [name])[name].to(self.device).double()
            with unit.timed("algebra"):
                h = transform.hadamard(spec.block, dtype=torch.float64, device=self.device)
                w = transform.rotate(self.linears[name].weight.detach().double(), h).float()
                gram = transform.rotate_gram(gram, h)
                grid = _stored(
                    weight_grid(
                        w, bits=spec.weight_bits, group=spec.group,
                        symmetric=self.recipe.weight_symmetric, clip=self.recipe.weight_clip,
                    )
                )  # fmt: skip
                scale, zero = grid.columns(w.shape[1])
                nearest = encode(w, scale, zero, grid.levels)
                nearest_error = gptq.weighted_error(w, decode(nearest, scale, zero), gram)
                solved = gptq.Solved(codes_OI=nearest.to(torch.uint8), damping=0.0, error=nearest_error)
                if self.recipe.solver == "gptq":
                    solved = self._gptq(name, w, gram, grid)
            tensors.write(
                unit.folder,
                {
                    "codes": solved.codes_OI,
                    "scale": grid.scale_OG.bfloat16(),
                    "zero": grid.zero_OG.to(torch.uint8),
                },
            )
            unit.value = {
                "error": solved.error,
                "nearest_error": nearest_error,
                "damping": solved.damping,
                "spec": spec.plain(),
            }

    def _gptq(self, name: str, w: Tensor, gram: Tensor, grid: Grid) -> Any:
        from adatsq_pipe.stages.numerics import gptq

        try:
            return gptq.solve(w, gram, grid, damping=self.settings.damping, act_order=self.settings.act_order)
        except ValueError as error:
            raise StageError(f"layer {name}: {error}; raise solve.damping or capture.rows") from None


def _stored(grid: Grid) -> Grid:
    """The grid as the checkpoint will hold it: scales in bfloat16. The solve then makes up for their rounding."""
    from dataclasses import replace

    return replace(grid, scale_OG=grid.scale_OG.bfloat16().float())


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
    weights = {key: recipe[key] for key in (*WEIGHT_FIELDS, "activation_symmetric")}
    return {**identity(tables, "compute", "solve"), "recipe": weights}


STAGE = Stage(
    name="solve",
    version=1,
    needs=("capture", "hessian"),
    reads=_reads,
    run=run,
    expected=lambda context: len(_units(context)),
    settings=SolveSettings,
)
