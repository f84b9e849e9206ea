"""Fisher: how much depends on each layer at each timestep, of a step's output or of the final latents.

`recipe.sensitivity = "trajectory"` measures the final latents, by the trajectory adjoint (denoiser/adjoint.py). Units:
`differentiable` says whether the pipeline's loop allows it, and `sweep/<batch>-<draw>` holds the signed effects of
rounding (see effects.py). If the loop does not allow it, single steps are measured as below.

`recipe.sensitivity = "step"` (AdaTSQ) measures the denoiser's output. Label-free: L = 1/2 |v - sg(v) - eps|^2 with
eps ~ N(0, I), so dL/dv = -eps and no data beyond the recorded runs is needed. Hooks on output gradients give `g`;
|g^T x|^2 is reduced on the spot and no weight gradient is ever held.
Units: `scores/<block>-<shard>`, an array [steps of the block, layers] of mean squared gradients per sample.
"""

from __future__ import annotations

from adatsq_pipe.stages.base.context import Context, Executor, Report, WorkerRef
from adatsq_pipe.stages.base.run_settings import RunSettings
from adatsq_pipe.stages.base.settings import ComputeSettings
from adatsq_pipe.stages.base.stage import Stage
from adatsq_pipe.stages.base.units import fan_out
from adatsq_pipe.stages.calibration.effects import FisherSettings, is_end_to_end, sweep_units
from adatsq_pipe.stages.calibration.scores import score_units
from adatsq_pipe.stages.calibration.unit_keys import DIFFERENTIABLE
from adatsq_pipe.stages.methods._recipe import Recipe, at_default
from adatsq_pipe.storage.fingerprint import Plain

WORKER = WorkerRef(stage="fisher", path="adatsq_pipe.stages.calibration.fisher_worker:Fisher")
SWEEP = WorkerRef(stage="fisher", path="adatsq_pipe.stages.calibration.sweep_worker:Sweep")


def run(context: Context, executor: Executor, report: Report) -> None:
    if context.settings[Recipe].sensitivity == "trajectory":
        fan_out(context, executor, SWEEP, [DIFFERENTIABLE], report)
        if is_end_to_end(context):
            fan_out(context, executor, SWEEP, [DIFFERENTIABLE, *sweep_units(context)], report)
            return
    fan_out(context, executor, WORKER, score_units(context), report)


def _reads(settings: RunSettings, model: str) -> Plain:
    recipe, found = settings[Recipe], settings.identity(ComputeSettings, FisherSettings)
    if recipe.sensitivity == "trajectory":
        rounding = recipe.model_dump(mode="json", include=(ROUNDING | _input_parts(recipe)) - at_default(recipe))
        return {**found, "sensitivity": "trajectory", "rounding": rounding}
    return {**found, "curvature": True} if recipe.time_search else found


ROUNDING = {
    "transform", "transform_block", "rotation_steps", "weight_bits", "weight_group", "group_fit", "weight_symmetric",
    "weight_clip", "conditioning_bits", "conditioning_group", "activation_symmetric", "activation_group",
}  # fmt: skip
"""Fields of the recipe that say how a layer is rounded: the effects of rounding depend on them."""


def _input_parts(recipe: Recipe) -> set[str]:
    """Fields that say what a layer's input passes through before it is rounded, of the parts that the recipe has."""
    found = set[str]()
    if recipe.permuted:
        found |= {"permuted", "channel_order"}
    if recipe.smoothing != "none":
        found |= {"smoothing", "smoothing_alpha", "smoothing_grid", "smoothing_error", "smoothing_over"}
        found |= {"smoothing_skip", "smoothing_layers"}
    if recipe.shift_groups:
        found |= {"shift_groups", "shift_momentum", "smoothing_layers"}
    if recipe.channel_order == "moment" or recipe.smoothing == "migration" or recipe.smoothing_error == "tokens":
        found.add("activation_bits")  # tokens rounded to so many bits choose
    return found


def _expected(context: Context) -> int | None:
    if context.settings[Recipe].sensitivity == "trajectory":
        if not context.manifest("fisher").done(DIFFERENTIABLE):
            return None
        if is_end_to_end(context):
            return 1 + len(sweep_units(context))
        return 1 + len(score_units(context)) if score_units(context) else None
    return len(score_units(context)) or None


STAGE = Stage(
    name="fisher",
    version=5,
    needs=("capture",),
    reads=_reads,
    run=run,
    expected=_expected,
    settings=FisherSettings,
)
