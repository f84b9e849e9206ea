"""Search: which activation bits every layer has at every timestep, under a budget of mean bits.

The trellis of AdaTSQ (sec. 3.3): one level per scheduler step, a few candidate configurations a step, paths scored by
(mean bits, summed error against the full-precision run). A hypothesis is its list of denoiser outputs, so its state at
any step comes from teleporting through the pipeline's own loop. The survivors are re-scored by generating, and with
them the paths that have the same candidate at every step (ours). A lagrangian allocation needs no trellis: its own path
is rolled out, and once more with rounded weights alone.
Units: `path/<digest>-<slice>` (an extension evaluated on a slice of the captions, and its outputs), `level/<step>`
(the errors that the beam received), `rollout/<digest>-<slice>`, and `front` (the policy, and the whole Pareto front as
Parquet).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from adatsq_pipe.stages.allocation import batch_slices, bisection, decoupled, first_last
from adatsq_pipe.stages.allocation.batch_slices import BatchSlice, unit_name
from adatsq_pipe.stages.allocation.digest import digest_of
from adatsq_pipe.stages.allocation.front import write_front
from adatsq_pipe.stages.allocation.trellis import SearchSettings, Trellis, widths_of
from adatsq_pipe.stages.base.context import Context, Executor, Report, WorkerRef
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.run_settings import RunSettings
from adatsq_pipe.stages.base.settings import ComputeSettings, DataSettings
from adatsq_pipe.stages.base.stage import Stage
from adatsq_pipe.stages.base.units import Unit, unit_of
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY
from adatsq_pipe.storage.fingerprint import Plain

if TYPE_CHECKING:
    from adatsq_pipe.stages.numerics.beam import Choices


WORKER = WorkerRef(stage="search", path="adatsq_pipe.stages.allocation.rollout:BeamWorker", queue_depth=2)


def search(executor: Executor, context: Context, report: Report) -> None:
    """The search itself: ask the beam, have its paths evaluated, tell it. Resumes from the levels that are done."""
    space, manifest, data = Trellis(context), context.manifest("search"), context.settings[DataSettings]
    trellis, again = BatchSlice.for_trellis(data, space.settings), BatchSlice.for_rollouts(data, space.settings)
    if len({part.batch for part in trellis}) < space.settings.batches:
        raise StageError(
            f"search.batches is {space.settings.batches}, and the {len(data.prompts)} calibration captions make "
            f"{trellis[-1].batch + 1} of {data.batch}; lower search.batches or give more captions"
        )
    beam = space.beam()
    while not beam.finished and (space.costs is None or space.settings.beam):
        level = f"level/{beam.level:03d}"
        paths = beam.ask()
        if manifest.done(level):
            errors = context.read("search", level)[0].value
        else:
            errors = _evaluated(context, executor, "path", paths, trellis)
            with unit_of(context, "search", level) as unit:
                unit.value = errors
                _count_in(context, unit, list(batch_slices.keys_of("path", paths, trellis).values()), trellis)
        beam = beam.tell({path: errors[digest_of(path)] for path in paths})
        report(beam.level, len(beam.prices) + 1)
    survivors = [path.choices for path in beam.paths] if beam.finished else []
    survivors += [choices for choices in space.even if choices not in survivors]
    if space.costs is not None:
        survivors.append(space.weights_alone)
    rollouts = _evaluated(context, executor, "rollout", survivors, again)
    if not manifest.done("front"):
        write_front(context, space, beam, rollouts)
    for scratch in [unit for unit in manifest.units(refresh=True) if unit.startswith("path/")]:
        manifest.discard(scratch)
    report(len(beam.prices) + 1, len(beam.prices) + 1)


def _count_in(context: Context, unit: Unit, parts: list[str], trellis: list[BatchSlice]) -> None:
    """Put the cost of evaluations, whose own units are scratch, on the level's account, and what did not fit: a call
    counts by its captions' share of all."""
    captions = sum(part.samples for part in trellis)
    for part in parts:
        marker = context.manifest("search").read(part)
        for kind in ("model", "algebra"):
            unit.seconds[kind] += marker.seconds[kind]
        unit.calls += marker.value["calls"] * marker.value["samples"] / captions
        unit.elsewhere += marker.seconds["total"]
        if (narrowed := marker.micro_batch) is not None:
            unit.micro_batch = _narrower(unit.micro_batch, narrowed)


def _narrower(one: Mapping[str, int] | None, other: Mapping[str, int]) -> Mapping[str, int]:
    """Of two halvings the one that went further."""
    return min((one or other), other, key=lambda found: (found["to"], -found["from"]))


def _evaluated(
    context: Context, executor: Executor, kind: str, paths: list[Choices], parts: list[BatchSlice]
) -> dict[str, float]:
    """Errors by digest; what is already committed is not done again."""
    manifest, keys = context.manifest("search"), batch_slices.keys_of(kind, paths, parts)
    found = dict[str, float]()
    for unit in keys.values():
        if manifest.done(unit):
            found[unit] = context.read("search", unit)[0].value["error"]
    for key, error in executor.stream(WORKER, context, [key for key, unit in keys.items() if unit not in found]):
        found[keys[key]] = error
    return {
        digest_of(path): batch_slices.weighted_mean(
            {place: found[unit_name(kind, path, place)] for place in range(len(parts))}, parts
        )
        for path in paths
    }


def run(context: Context, executor: Executor, report: Report) -> None:
    allocation = context.settings[Recipe].allocation
    if allocation in ("trellis", "lagrangian"):
        executor.coordinate(search, context, report)
    elif allocation == "decoupled":
        decoupled.allocate(context, executor, report)
    elif allocation == "bisection":
        bisection.allocate(context, executor, report)
    elif allocation == "first_last":
        first_last.allocate(context)
        report(1, 1)
    else:
        _uniform(context)
        report(1, 1)


def _uniform(context: Context) -> None:
    """No search: the recipe's activation bits everywhere."""
    bits = context.settings[Recipe].activation_bits
    survey = survey_of(context)
    row = [bits if layer.rounded else WEIGHT_ONLY for layer in survey.layers]
    if not context.manifest("search").done("front"):
        with unit_of(context, "search", "front") as unit:
            unit.value = {
                "policy": [row] * survey.steps,
                "mean_bits": float(bits),
                "mac_weighted_bits": float(bits),
                "rollout_error": None,
                "front": 1,
            }


def _expected(context: Context) -> int | None:
    """Units of the finished stage; None where the paths that survive decide it."""
    allocation, settings = context.settings[Recipe].allocation, context.settings[SearchSettings]
    if allocation in ("uniform", "first_last"):
        return 1
    if allocation == "bisection":
        return bisection.expected(context)
    if allocation == "decoupled":
        return sum(layer.rounded for layer in survey_of(context).layers) + 1
    if allocation == "lagrangian" and not settings.beam:
        rolled_out = ("its own policy", "weights alone")
        return len(rolled_out) * len(BatchSlice.for_rollouts(context.settings[DataSettings], settings)) + 1
    return None


def _reads(settings: RunSettings, model: str) -> Plain:
    recipe = settings[Recipe]
    if recipe.allocation == "uniform":
        return {"allocation": "uniform", "activation_bits": recipe.activation_bits}
    search = settings[SearchSettings]
    if recipe.allocation == "first_last":
        ends = {"end_steps": recipe.end_steps} if recipe.end_steps else {"budget": search.budget}
        return {"allocation": "first_last", "activation_bits": recipe.activation_bits, **ends}
    widths = {**search.identity(), "bits": list(widths_of(search, recipe.allocation))}
    alone = {"weights_alone": True} if recipe.allocation == "lagrangian" else {}
    return {**settings.identity(ComputeSettings), "search": widths, "allocation": recipe.allocation, **alone}


STAGE = Stage(
    name="search",
    version=4,
    needs=("capture", "fisher", "solve"),
    reads=_reads,
    run=run,
    expected=_expected,
    settings=SearchSettings,
)
