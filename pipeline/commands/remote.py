"""`submit` and `attach`: a run as a job of a cluster that is reached through its dashboard.

`submit` first checks what it can without the cluster: the command's own options, unknown settings, and paths that exist
only on this machine. It sends the settings of a `--config` file, not the file.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from adatsq_pipe.cluster.errors import ConnectionLost, JobRefused
from adatsq_pipe.pipeline import config as configuration
from adatsq_pipe.pipeline import plan as planning
from adatsq_pipe.pipeline.commands.shell import LEFT, STOPPED, example, fail, user_errors
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.hub_id import named_model
from adatsq_pipe.pipeline.toml_tables import as_sets, parse_set, read_toml
from adatsq_pipe.stages.scenes.builtin_models import builtin_models

NAME = "adatsq-pipe"
ROOMS = ("adatsq_pipe.cluster", "adatsq_pipe.pipeline", "adatsq_pipe.stages", "adatsq_pipe.storage")
SUBMITTED = ("run", "pick", "compare")

_address = click.option(
    "--address", required=True, metavar="http://HEAD:8265", help="Dashboard of a running Ray cluster."
)


@click.command(
    short_help="Run on a cluster, as a Ray job.",
    epilog=example("submit --address http://HEAD:8265 -- run --run-dir /mnt/shared/run"),
)
@_address
@click.option("--no-wait", is_flag=True, help="Return once the job is submitted.")
@click.option("--submission-id", "job", help="Name of the job on the cluster [default: a new one].")
@click.option(
    "--pip/--no-pip",
    default=True,
    help="Install the requirements on the nodes [default], or use what is installed there.",
)
@click.option("--working-dir", default="none", show_default=True, help="Folder to upload and run in.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="-- run|pick|compare ...")
@user_errors
@click.pass_context
def submit(
    context: click.Context,
    address: str,
    no_wait: bool,
    job: str | None,
    pip: bool,
    working_dir: str,
    command: tuple[str, ...],
) -> None:
    """Run `run`, `pick` or `compare` on a cluster, as a Ray job.

    Uploads this package and follows the log. Ctrl-C stops following, not the job. The exit code is the job's.
    """
    # The first two import Ray, the third the readers of packages' metadata: other commands do without.
    from adatsq_pipe.cluster import dashboard, wheel
    from adatsq_pipe.cluster import submit as jobs

    address, job = _checked(dashboard.check_address, address), _checked(jobs.check_id, job or jobs.new_id())
    sent = None if working_dir == "none" else Path(working_dir)
    if sent is not None and not sent.is_dir():
        raise ConfigError(f"--working-dir {working_dir}: this folder does not exist; `none` uploads nothing")
    parent = context.find_root().command
    assert isinstance(parent, click.Group)
    line = entrypoint(parent, command)
    try:
        client = dashboard.connect(address, wheel.requirement_on(NAME, "ray"))
        with tempfile.TemporaryDirectory() as folder:
            jobs.submit(
                client,
                job=job,
                command=line,
                wheel=wheel.pack(NAME, ROOMS, Path(folder)),
                requirements=wheel.requirements(NAME, exclude=("ray",), extras=_extras(line)) if pip else (),
                working_dir=sent,
            )
    except JobRefused as error:
        fail(str(error), 1)
    click.echo(f"submitted {job}")
    click.echo(f"follow    {_again(job, address)}")
    if not no_wait:
        _follow(client, job, address)


@click.command(
    short_help="Follow a submitted job.",
    epilog=example("attach adatsq-run-1 --address http://HEAD:8265"),
)
@click.argument("job", metavar="ID")
@_address
@user_errors
def attach(job: str, address: str) -> None:
    """Follow the job ID from the beginning of its log to its end. The exit code is the job's."""
    # The first two import Ray, the third the readers of packages' metadata: other commands do without.
    from adatsq_pipe.cluster import dashboard, wheel
    from adatsq_pipe.cluster import submit as jobs

    address, job = _checked(dashboard.check_address, address), _checked(jobs.check_id, job)
    try:
        client = dashboard.connect(address, wheel.requirement_on(NAME, "ray"))
    except JobRefused as error:
        fail(str(error), 1)
    _follow(client, job, address)


def _follow(client: Any, job: str, address: str) -> None:
    from adatsq_pipe.cluster import submit as jobs  # imports Ray

    try:
        outcome = jobs.follow(
            client, job, write=lambda text: click.echo(text, nl=False), notify=lambda line: click.echo(line, err=True)
        )
    except KeyboardInterrupt:
        click.echo(f"\nstopped following; the job continues. Follow it again with: {_again(job, address)}", err=True)
        sys.exit(LEFT)
    except ConnectionLost as error:
        fail(f"{error}; the job may still run. Follow it again with: {_again(job, address)}", 1)
    except JobRefused as error:
        fail(str(error), 1)
    if outcome.exit_code == 0:
        click.echo(f"done      {job}")
    elif outcome.stopped or outcome.exit_code == STOPPED:
        click.echo(f"{job} was stopped. Finished units are kept. Submit it again to resume", err=True)
        sys.exit(STOPPED)
    elif outcome.exit_code is None:
        fail(f"{job} did not start, or lost its node: {outcome.message}; submit it again to resume", 1)
    else:
        fail(f"{job} failed with exit code {outcome.exit_code}; its log is above", 2 if outcome.exit_code == 2 else 1)


def entrypoint(parent: click.Group, command: Sequence[str]) -> str:
    """The shell line that the job runs, after checking the command. Raises ConfigError or click's UsageError."""
    name = command[0] if command else ""
    if name not in SUBMITTED:
        known = f"{', '.join(SUBMITTED[:-1])} and {SUBMITTED[-1]}"
        raise ConfigError(f"only {known} can be submitted, after `--`; got {name or 'nothing'!r}")
    arguments = list(command[1:])
    options = parent.commands[name].make_context(name, list(arguments)).params
    sets = list(options.get("sets", ()))
    if options.get("file"):
        arguments = _without(arguments, "--config")
        read = list(as_sets(read_toml(options["file"])))
        arguments, sets = [*(part for text in read for part in ("--set", text)), *arguments], [*read, *sets]
    tables = parse_set(sets)
    configuration.refuse_unknown(tables)
    if "stages" in options:
        planning.choose(options["stages"])
    cluster = tables.get("cluster", {})
    if "inline" in (options["executor"], cluster.get("executor")):
        raise ConfigError("a submitted run uses the cluster it is submitted to; do not set the executor to inline")
    for named in (options["address"], cluster.get("address")):
        if named not in (None, "auto"):
            raise ConfigError(f"a submitted run joins the cluster it is submitted to; do not set the address {named!r}")
    _check_shared(
        "RUN" if name == "pick" else "--run-dir",
        str(options["run_dir"]),
        "an absolute path that all nodes see, e.g. /mnt/shared/run, or s3://bucket/run",
    )
    model = options.get("model") or tables.get("model", {}).get("path") or ""
    if model and model not in builtin_models():
        if hub := named_model(str(model)):
            shared = f"/mnt/shared/{hub.repository.partition('/')[2]}"
            raise ConfigError(
                f"--model {model}: a job would download it into the cache of one node; use a folder that all nodes see "
                f"(hf download {hub.repository} --local-dir {shared})"
            )
        _check_shared("--model", str(model), "a built-in name, or an absolute path that all nodes see")
    for table in ("data", "evaluate"):
        if file := tables.get(table, {}).get("prompts_file"):
            _check_shared(f"{table}.prompts_file", str(file), "an absolute path that all nodes see")
    joined = [] if options["address"] else ["--address", "auto"]
    return "exec python -m adatsq_pipe.pipeline.commands.cli " + shlex.join([name, *arguments, *joined])


def _without(arguments: Sequence[str], option: str) -> list[str]:
    others, rest = [], iter(arguments)
    for argument in rest:
        if argument == option:
            next(rest, None)
        elif not argument.startswith(f"{option}="):
            others.append(argument)
    return others


def _extras(line: str) -> tuple[str, ...]:
    """The extras of this package that the command needs on the nodes."""
    return ("s3",) if "s3://" in line else ()


def _check_shared(option: str, path: str, expected: str) -> None:
    """Raise ConfigError for a path that other machines cannot see."""
    if not path.startswith("/") and ":/" not in path:
        raise ConfigError(f"{option} {path} means nothing on another machine; use {expected}")


def _again(job: str, address: str) -> str:
    return f"{NAME} attach {job} --address {address}"


def _checked(check: Callable[[str], str], value: str) -> str:
    try:
        return check(value)
    except ValueError as error:
        raise ConfigError(str(error)) from None
