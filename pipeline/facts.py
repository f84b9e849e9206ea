"""What a reader of a run's numbers should know: fallbacks, halved batches, raised damping, what was left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from adatsq_pipe.pipeline.captions import origin
from adatsq_pipe.pipeline.config import RunConfig
from adatsq_pipe.pipeline.summary import CAST_WEIGHTS, Facts
from adatsq_pipe.stages.allocation.sensitivity import sensitivity_of
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.settings import ModelSettings
from adatsq_pipe.stages.base.survey import Survey
from adatsq_pipe.stages.calibration.survey import left_of
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.weights.solve import SolveSettings
from adatsq_pipe.storage.rundir import RunDir


def facts_of(config: RunConfig, run: RunDir, context: Context) -> Facts:
    """The facts of a finished run, from its units' markers and its log."""
    markers = context.manifest("solve").markers()
    layers = {u.removeprefix("layer/"): marker.value for u, marker in markers.items() if u.startswith("layer/")}
    survey = Survey.from_plain(context.manifest("capture").read("survey").value)
    damping = config.settings[SolveSettings].damping
    return Facts(
        sensitivity=sensitivity_of(context),
        layers_not_called=list(survey.unused),
        layers_called_repeatedly_and_left_alone=list(survey.repeated),
        left_alone=left_of(context),
        weight_only_layers=[layer.name for layer in survey.layers if not layer.rounded],
        memory=_logged(run, context, "memory"),
        damping_raised={name: value["damping"] for name, value in layers.items() if value["damping"] > damping},
        micro_batch=_micro_batches(context),
        placement=_logged(run, context, "placement"),
        smoothing=dict(Counter(value["smoothing"] for value in layers.values())),
        shifted={name: v["spec"]["shift_groups"] for name, v in layers.items() if "shift_groups" in v["spec"]},
        groups_fitted=_fitted(config, layers),
        captions=origin(config.settings[EvaluateSettings], config.settings[ModelSettings].world),
        worst_layer_error=max((value["error"], name) for name, value in layers.items()),
        main_memory=_main_memory(context),
        disk=_disk(run, context),
    )


def _micro_batches(context: Context) -> dict[str, dict[str, int]]:
    """Units by stage whose batches did not fit into memory, counted by what they were halved to."""
    halvings: dict[str, dict[str, int]] = {}
    for stage in context.fingerprints:
        halved = [m.micro_batch for m in context.manifest(stage).markers().values() if m.micro_batch]
        if halved:
            halvings[stage] = dict(sorted(Counter(f"{m['from']} -> {m['to']}" for m in halved).items()))
    return halvings


def _main_memory(context: Context) -> dict[str, int]:
    peaks = {stage: [m.resident for m in context.manifest(stage).markers().values()] for stage in context.fingerprints}
    return {stage: max(found) for stage, found in peaks.items() if any(found)}


def _disk(run: RunDir, context: Context) -> dict[str, int]:
    markers = {stage: context.manifest(stage).markers().values() for stage in context.fingerprints}
    found = {stage: sum(size for m in own for size, _ in m.files.values()) for stage, own in markers.items()}
    shared = [size for size in _logged(run, context, "cast").values() if isinstance(size, int)]
    return found | ({CAST_WEIGHTS: max(shared)} if shared else {})


def _logged(run: RunDir, context: Context, fact: str) -> dict[str, object]:
    """The last entry of the log for `fact` (`memory`: how the model fits; `placement`: workers to a GPU; `cast`: bytes
    of the weights that workers shared) by stage."""
    return {
        entry["stage"]: entry[fact]
        for entry in run.log_entries()
        if fact in entry and context.fingerprints.get(entry["stage"]) == entry["fingerprint"]
    }


def _fitted(config: RunConfig, layers: Mapping[str, Any]) -> dict[str, int]:
    """Layers whose weight groups are not of the recipe's size, for that does not divide their width."""
    recipe = config.settings[Recipe]
    wanted = {recipe.weight_group, recipe.conditioning_group}
    if not recipe.group_fit or recipe.group_search:
        return {}
    return {name: v["spec"]["group"] for name, v in layers.items() if v["spec"]["group"] not in wanted}
