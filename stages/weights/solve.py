"""Solve: every layer's low-bit weight, one unit a layer. Layers are independent of each other; those that share an
input are one task.

A weight is smoothed, rotated, relieved of what its low-rank branch takes, and rounded, as the recipe has it. Units:
`bits` (the weight bits of every layer, where recipe.weight_budget divides them), and
`layer/<name>`: codes uint8 [out, in] (not packed), scale bfloat16 and zero uint8 [out, groups], and the tensors of the
other parts (see LayerSpec.tensors). The unit's value records the damping that was needed and the output error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from adatsq_pipe.stages.base.context import Context, Executor, Report, WorkerRef
from adatsq_pipe.stages.base.run_settings import RunSettings
from adatsq_pipe.stages.base.settings import ComputeSettings, Settings
from adatsq_pipe.stages.base.stage import Stage
from adatsq_pipe.stages.base.survey import LayerInfo
from adatsq_pipe.stages.base.units import fan_out
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.methods._recipe import NOT_OF_WEIGHTS, Recipe, at_default
from adatsq_pipe.storage.fingerprint import Plain


class SolveSettings(Settings):
    """[solve]"""

    table: ClassVar[str] = "solve"

    damping: float = Field(default=0.01, gt=0, le=100)
    """Added to the Gram diagonal, as a share of its mean."""
    act_order: bool = True
    """Solve columns by falling Gram diagonal (groups stay static)."""


CHOICE = "choice"
BITS = "bits"
"""Units that choose for all layers: the sizes of groups, and weight bits."""
SHARERS = 4
"""q, k, v and what else reads their input."""

WORKER = WorkerRef(stage="solve", path="adatsq_pipe.stages.weights.solve_worker:Solve")


def _searched(rows: Iterable[LayerInfo]) -> list[LayerInfo]:
    """The layers whose groups are searched: those whose inputs are rounded."""
    return [row for row in rows if row.rounded]


def _before_layers(context: Context) -> list[list[str]]:
    """Units before the layers', in their order: the bits, where weight bits are divided among layers, and the errors of
    each size and the choice, where groups are searched."""
    waves = list[list[str]]()
    if context.settings[Recipe].weight_budget:
        waves = [[BITS]]
    if context.settings[Recipe].group_search:
        waves += [[f"sizes/{row.name}" for row in _searched(survey_of(context).layers)], [CHOICE]]
    return waves


def sharers(rows: Sequence[LayerInfo]) -> dict[str, list[str]]:
    """The tasks of layers, by name: layers that share an input are solved by one worker, which factors its Gram matrix
    once. At most SHARERS go together, so that work is left for other workers."""
    by_input: dict[str, list[str]] = {}
    for row in rows:
        by_input.setdefault(row.input_of, []).append(row.name)
    together = [names[i : i + SHARERS] for names in by_input.values() for i in range(0, len(names), SHARERS)]
    return {f"layers/{names[0]}": names for names in together}


def run(context: Context, executor: Executor, report: Report) -> None:
    before, total = 0, _count(context)
    layers = {task: [f"layer/{name}" for name in names] for task, names in sharers(survey_of(context).layers).items()}
    waves: list[Sequence[str] | Mapping[str, Sequence[str]]] = [*_before_layers(context), layers]
    for keys in waves:
        fan_out(context, executor, WORKER, keys, lambda done, n: report(before + done, total))  # noqa: B023
        before += len(keys)


def _count(context: Context) -> int:
    return sum(map(len, _before_layers(context))) + len(survey_of(context).layers)


def _reads(settings: RunSettings, model: str) -> Plain:
    recipe = settings[Recipe]
    without_meaning = at_default(recipe)
    without_meaning |= set() if recipe.time_groups else {"time_search"}
    if not recipe.weight_budget:
        without_meaning.add("weight_budget")
    weights = recipe.model_dump(mode="json", exclude={*NOT_OF_WEIGHTS, *without_meaning})
    by_tokens = recipe.channel_order == "moment" or recipe.smoothing == "migration"
    by_tokens = by_tokens or recipe.smoothing_error == "tokens"
    if recipe.time_groups or recipe.group_search or recipe.clip_bins or by_tokens:
        weights["activation_bits"] = recipe.activation_bits
    if recipe.regions:
        weights["gelu"] = "both"  # else results that knew the exact form alone would be reused
    return {**settings.identity(ComputeSettings, SolveSettings), "recipe": weights}


STAGE = Stage(
    name="solve",
    version=6,
    needs=("capture", "hessian"),
    reads=_reads,
    run=run,
    expected=_count,
    settings=SolveSettings,
)
