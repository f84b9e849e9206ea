"""`report`: the page and the pictures of a finished run, written again."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

import click

from adatsq_pipe.pipeline.commands.layout import print_json
from adatsq_pipe.pipeline.commands.shell import DEFAULT_RUN, example, fail, json_option, run_lock, user_errors
from adatsq_pipe.pipeline.config import RunConfig
from adatsq_pipe.pipeline.plan import Step, plan
from adatsq_pipe.pipeline.request import load_config, read_request
from adatsq_pipe.pipeline.summary import PAGE, UNFINISHED, read_summary
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.storage.errors import DamagedUnit
from adatsq_pipe.storage.rundir import RunDir


@click.command(short_help="Write the report of a finished run again.", epilog=example("report adatsq-run"))
@click.argument("run_dir", metavar="RUN", default=DEFAULT_RUN)
@json_option
@user_errors
def report(run_dir: str, as_json: bool) -> None:
    """Write the report of RUN again: report.html, the pictures as files, the plots and the summary.

    RUN is a run directory whose stages are done [default: adatsq-run], or that of a comparison, whose page compare.html
    is written again. No stage runs. Of a run that is not finished, report/unfinished.html shows what there is and what
    is missing, and the exit code is 1.
    """
    from adatsq_pipe.pipeline import compare, comparison  # imports numpy and pyarrow, which `--help` needs not
    from adatsq_pipe.pipeline import report as reporting  # as above

    place, written = RunDir.open(run_dir), dict[str, object]()
    place.check()
    if comparison.compared(place):
        with run_lock(place):
            compare.write_page(place, lambda line: click.echo(line, file=sys.stderr))
        if not (place.path / "compare.html").exists():
            fail(f"the page of {place.display()} could not be written; the reason is above", 1)
        written["page"] = place.display("compare.html")
    if not written or read_request(place.path) is not None:
        config = load_config(place, None, None, None, ())
        steps, context = plan(config, place)
        if not all(step.complete for step in steps):
            _write_partial(config, place, steps, context, as_json)
            fail(_unfinished(place, steps), 1)
        try:
            with run_lock(place):
                reporting.write(
                    config, place, steps, context, lambda line: click.echo(line, file=sys.stderr), again=True
                )
        except DamagedUnit as error:
            context.manifest(error.stage).notes.add(error.unit, error.what)
            _write_partial(config, place, plan(config, place)[0], context, as_json)
            fail(f"{error}; do it again with: adatsq-pipe run --run-dir {place.display()}", 1)
        written |= {"report": place.display("report/" + PAGE), "pictures": place.display("report/pictures")}
        written |= {"summary": asdict(read_summary(place.report))} if as_json else {}
    if as_json:
        print_json(written)
        return
    for name, path in written.items():
        click.echo(f"{name:9} {path}")


def _write_partial(config: RunConfig, place: RunDir, steps: Sequence[Step], context: Context, as_json: bool) -> None:
    """The page of what there is of a run that is not finished, where anything is; a place that cannot be written to
    has none."""
    from adatsq_pipe.pipeline.page import partial  # imports plotly, which `--help` needs not

    if not any(step.done or step.damaged or step.failed for step in steps):
        return
    try:
        partial.write_partial(config, place, steps, context, _lacks(place, steps), _advice(place))
    except OSError as error:
        click.echo(f"what there is could not be written: {error}", file=sys.stderr)
        return
    path = place.display("report/" + UNFINISHED)
    print_json({"unfinished": path}) if as_json else click.echo(f"unfinished {path}")


def _unfinished(place: RunDir, steps: Sequence[Step]) -> str:
    """What a report of the run lacks, and what to do, in a line."""
    return f"{place.display()} is not finished: {'; '.join(_lacks(place, steps))}; {_advice(place)}"


def _lacks(place: RunDir, steps: Sequence[Step]) -> list[str]:
    """What a report of the run lacks."""
    parts = [_lacking(step) for step in steps if not step.complete and not step.damaged]
    parts = [f"{', '.join(parts)} not done"] if parts else []
    parts += [f"unit {unit!r} of {s.stage.name} is damaged: {what}" for s in steps for unit, what in s.damaged[:1]]
    parts += [
        f"unit {unit!r} of {s.stage.name} failed: {error}"
        for s in steps if not s.complete for unit, error in list(s.failed.items())[:1]
    ]  # fmt: skip
    if read_request(place.path) is None and any(place.identities(step.stage.name) for step in steps):
        parts.append("config.toml is missing, so that these are the default settings' stages")
    if (place.report / PAGE).exists():
        parts.append(f"{place.display('report/' + PAGE)} is of what was finished before")
    return parts


def _advice(place: RunDir) -> str:
    """The command that goes on with the run, or that watches who is at it."""
    holder = place.holder()
    if holder is not None and holder.is_alive(time.time()):
        watch = f"adatsq-pipe status {place.display()} --watch"
        return f"process {holder.pid} on {holder.host} is at it; watch it with: {watch}"
    return f"finish it with: adatsq-pipe run --run-dir {place.display()}"


def _lacking(step: Step) -> str:
    """A stage that is not done, with what there is of it."""
    if not step.done:
        return step.stage.name
    of = f" of {step.expected}" if step.expected is not None else ""
    return f"{step.stage.name} ({step.done}{of} units)"
