"""`report`: the page and the pictures of a finished run, written again."""

from __future__ import annotations

import sys

import click

from adatsq_pipe.pipeline.commands.shell import DEFAULT_RUN, example, fail, run_lock, user_errors
from adatsq_pipe.pipeline.plan import plan
from adatsq_pipe.pipeline.request import load_config, read_request
from adatsq_pipe.pipeline.summary import PAGE
from adatsq_pipe.storage.rundir import RunDir


@click.command(short_help="Write the report of a finished run again.", epilog=example("report adatsq-run"))
@click.argument("run_dir", metavar="RUN", default=DEFAULT_RUN)
@user_errors
def report(run_dir: str) -> None:
    """Write the report of RUN again: report.html, the pictures as files, the plots and the summary.

    RUN is a run directory whose stages are done [default: adatsq-run], or that of a comparison, whose page compare.html
    is written again. No stage runs.
    """
    from adatsq_pipe.pipeline import compare, comparison  # imports numpy and pyarrow, which `--help` needs not
    from adatsq_pipe.pipeline import report as reporting  # as above

    place = RunDir.open(run_dir)
    place.check()
    if comparison.compared(place):
        with run_lock(place):
            compare.write_page(place, lambda line: click.echo(line, file=sys.stderr))
        if not (place.path / "compare.html").exists():
            fail(f"the page of {place.display()} could not be written; the reason is above", 1)
        click.echo(f"page      {place.display('compare.html')}")
        if read_request(place.path) is None:
            return
    config = load_config(place, None, None, None, ())
    steps, context = plan(config, place)
    lacking = [step.stage.name for step in steps if not step.complete]
    if lacking:
        fail(
            f"{place.display()} is not finished: {', '.join(lacking)} not done; "
            f"finish it with: adatsq-pipe run --run-dir {place.display()}",
            1,
        )
    with run_lock(place):
        reporting.write(config, place, steps, context, lambda line: click.echo(line, file=sys.stderr), again=True)
    click.echo(f"report    {place.display('report/' + PAGE)}")
    click.echo(f"pictures  {place.display('report/pictures')}")
