"""Units of every stage, as the stages' own code counts them, and their waves: what can run at the same time.

The stages are asked in an empty run directory of their own that holds no more than the survey which the model's configs
foretell.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from adatsq_pipe.pipeline.estimate.outlook import Outlook
from adatsq_pipe.stages.allocation.batch_slices import BatchSlice
from adatsq_pipe.stages.allocation.trellis import BEAM_FACTORS, SearchSettings
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.run_settings import ModelRef
from adatsq_pipe.stages.base.settings import DataSettings
from adatsq_pipe.stages.base.stage import all_stages
from adatsq_pipe.stages.calibration.survey import unit_waves
from adatsq_pipe.stages.calibration.unit_keys import DIFFERENTIABLE

ANY = "0" * 64
"""A fingerprint; none is like it."""


@contextmanager
def foretold(outlook: Outlook) -> Iterator[Context]:
    """Inside, a context whose run directory says what capture and fisher would find out first."""
    with tempfile.TemporaryDirectory(prefix="adatsq-plan-") as folder:
        context = Context(
            settings=outlook.settings,
            run=folder,
            model=ModelRef(path=outlook.subject.path),
            fingerprints=dict.fromkeys(all_stages(), ANY),
        )
        for stage, unit, value in (
            ("capture", "survey", outlook.survey.plain()),
            ("fisher", DIFFERENTIABLE, {"obstacle": ""}),
        ):
            manifest = context.manifest(stage)
            manifest.open_unit(unit)
            manifest.commit(unit, value=value)
        yield context


def units_of(outlook: Outlook) -> dict[str, tuple[int, ...]]:
    """How many units every stage has, by wave: the units of a wave run at the same time, waves one after the other. The
    capture's last are no wave of their own: the tasks that record its runs write the inputs too."""
    with foretold(outlook) as context:
        expected = {name: stage.expected(context) for name, stage in all_stages().items()}
        first, batches = unit_waves(context)
        capture = (len(first), len(batches), sum(len(units) - 1 for units in batches.values()))
    found: dict[str, tuple[int, ...]] = {name: (count,) for name, count in expected.items() if count is not None}
    found["capture"] = capture
    found["search"] = search_waves(outlook)
    return {name: found[name] for name in all_stages()}


def search_waves(outlook: Outlook) -> tuple[int, ...]:
    """The units that a search leaves, and those of its levels that it removes again, by wave."""
    settings, data = outlook.settings[SearchSettings], outlook.settings[DataSettings]
    allocation, rollouts = outlook.recipe.allocation, len(BatchSlice.for_rollouts(data, settings))
    if allocation in ("uniform", "first_last"):
        return (1,)
    if allocation == "bisection":
        return outlook.geometry.steps, 1, 1
    if allocation == "decoupled":
        return sum(row.rounded for row in outlook.survey.layers), 1
    if allocation == "lagrangian" and not settings.beam:
        return 2 * rollouts, 1
    paths, slices = paths_of_levels(outlook), len(BatchSlice.for_trellis(data, settings))
    return *(slices * here + 1 for here in paths), survivors_of(outlook) * rollouts, 1


def candidates_of(outlook: Outlook) -> int:
    """Candidates of a step of the trellis."""
    settings = outlook.settings[SearchSettings]
    return 1 + len(BEAM_FACTORS) if outlook.recipe.allocation == "lagrangian" else len(settings.candidates)


def paths_of_levels(outlook: Outlook) -> list[int]:
    """Paths that every level of a beam evaluates: each survivor with each candidate."""
    width, candidates = outlook.settings[SearchSettings].width, candidates_of(outlook)
    alive, found = 1, list[int]()
    for _ in range(outlook.geometry.steps):
        found.append(alive * candidates)
        alive = min(width, found[-1])
    return found


def survivors_of(outlook: Outlook) -> int:
    """Policies that are rolled out after a beam, at most."""
    width, lagrangian = outlook.settings[SearchSettings].width, outlook.recipe.allocation == "lagrangian"
    return width + (2 if lagrangian else candidates_of(outlook))
