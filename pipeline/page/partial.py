"""The page of a run that is not finished: what is there of it, and above that what is missing and how it goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from adatsq_pipe.pipeline import costs
from adatsq_pipe.pipeline.config import RunConfig
from adatsq_pipe.pipeline.notes import Notes
from adatsq_pipe.pipeline.page import charts, content, render
from adatsq_pipe.pipeline.page.tables import Cell, Table
from adatsq_pipe.pipeline.plan import Step
from adatsq_pipe.pipeline.summary import UNFINISHED
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.calibration.survey import left_of
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.storage.errors import DamagedUnit
from adatsq_pipe.storage.files import write_text
from adatsq_pipe.storage.model_files import model_name
from adatsq_pipe.storage.rundir import RunDir


def write_partial(
    config: RunConfig, run: RunDir, steps: Sequence[Step], context: Context, lacks: Sequence[str], advice: str
) -> Path:
    """Write the page, and return its path. `lacks` says what is missing, `advice` what to do about it.

    A part whose stages are not done is left out, one that cannot be read is noted on the page. Raises OSError.
    """
    sound, notes = {step.stage.name for step in steps if step.complete}, Notes()
    drawings: dict[str, tuple[set[str], Callable[[], charts.Chart]]] = {
        "policy": ({"capture", "fisher", "search"}, lambda: charts.policy_chart(context)),
        "front": ({"search"}, lambda: charts.front_chart(context, run.display())),
    }
    if context.settings[Recipe].allocation != "lagrangian":
        del drawings["front"]
    sources: dict[str, tuple[set[str], Callable[[], Table]]] = {
        "stages": (set(), lambda: _stages(steps)),
        "errors": (set(), lambda: _errors(steps)),
        "layers": ({"capture"}, lambda: content.layers_table(context)),
        "left": ({"capture"}, lambda: content.left_table(left_of(context))),
        "seconds": (set(), lambda: content.seconds_table(costs.seconds(run, context))),
        "space": (
            set(),
            lambda: content.space_table(
                {step.stage.name: step.size for step in steps if step.size},
                {step.stage.name: step.memory for step in steps},
            ),
        ),
        "versions": (set(), lambda: content.versions_table(context)),
    }
    drawn, tables = dict[str, charts.Chart](), dict[str, Table]()
    for name, (needs, draw) in drawings.items():
        if needs <= sound:
            with notes.of(name):
                try:
                    drawn[name] = draw()
                except DamagedUnit as error:
                    notes[name] = str(error)
    for name, (needs, make) in sources.items():
        if needs <= sound:
            with notes.of(name):
                try:
                    if (table := make()).rows:
                        tables[name] = table
                except DamagedUnit as error:
                    notes[name] = str(error)
    text = render.html(
        "partial.html.jinja", title=f"{model_name(config.model)}: not finished", charts=drawn, tables=tables,
        lacks=lacks, advice=advice, notes=notes, configuration=content.configuration(config),
    )  # fmt: skip
    run.report.mkdir(exist_ok=True)
    write_text(run.report / UNFINISHED, text)
    run.upload(f"report/{UNFINISHED}")
    return run.report / UNFINISHED


def _stages(steps: Sequence[Step]) -> Table:
    """Every stage, and how much of it is done."""
    rows: list[list[Cell]] = [
        [step.stage.name, step.state, step.done, step.expected, len(step.failed), len(step.damaged)] for step in steps
    ]
    columns = ("stage", "state", "units done", "units expected", "units failed", "units damaged")
    return Table(name="stages", columns=columns, rows=rows)


def _errors(steps: Sequence[Step]) -> Table:
    """Units that are damaged, and those whose last try failed."""
    rows: list[list[Cell]] = []
    for step in steps:
        rows += [[step.stage.name, unit, "damaged", what] for unit, what in step.damaged]
        rows += [[step.stage.name, unit, "failed", error] for unit, error in step.failed.items()]
    return Table(name="errors", columns=("stage", "unit", "state", "what"), rows=rows)
