"""What the commands share: options, one-line errors, exit codes, and stopping between units."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

import click
from click.core import ParameterSource

from adatsq_pipe.cluster.errors import ClusterUnreachable, Stopped, TaskFailed, WorkerLost
from adatsq_pipe.pipeline import config as configuration
from adatsq_pipe.pipeline import runner
from adatsq_pipe.pipeline.commands import completion
from adatsq_pipe.pipeline.config import PRESETS, RunConfig
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.stages.base.errors import NotTaken, StageError
from adatsq_pipe.storage.errors import NoRun, NoTransformer, StorageError, UnusableModel
from adatsq_pipe.storage.rundir import RunDir

STOPPED = 75
"""Exit code of a run that was stopped between units."""
LEFT = 130
"""Exit code of Ctrl-C while following what runs elsewhere and continues."""
DEFAULT_RUN = "adatsq-run"

F = TypeVar("F", bound=Callable[..., object])
P = ParamSpec("P")
T = TypeVar("T")


run_dir_option = click.option(
    "--run-dir",
    default=DEFAULT_RUN,
    show_default=True,
    metavar="PATH|URL",
    help="Run directory: a folder or a URL such as s3://bucket/run.",
)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
run_argument = click.argument("named", metavar="[RUN]", required=False)
"""A run directory as an argument, for commands that have --run-dir as well; `run_dir_of` takes either."""


def run_dir_of(named: str | None, run_dir: str) -> str:
    """The run directory that the argument or --run-dir names. Raises UsageError if both do, and differ."""
    given = click.get_current_context().get_parameter_source("run_dir") is not ParameterSource.DEFAULT
    if named is not None and given and named != run_dir:
        raise click.UsageError(f"RUN is {named} and --run-dir is {run_dir}; name one run directory")
    return run_dir if named is None else named


def example(line: str) -> str:
    """A command's epilog: `adatsq-pipe` and the line, in one line that click does not wrap."""
    return f"\b\nExample:\n  adatsq-pipe {line}"


def options(command: F) -> F:
    """Add the options for the run directory and the configuration."""
    for option in reversed(
        (
            run_dir_option,
            click.option(
                "--model",
                shell_complete=completion.models,
                help=f"Pipeline folder, org/name of the hub, or built-in name [default: {configuration.BUILT_IN}].",
            ),
            click.option("--preset", type=click.Choice(PRESETS), help="Settings to start from [default: w4a4]."),
            click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file with settings."),
            click.option(
                "--set",
                "sets",
                multiple=True,
                metavar="TABLE.KEY=VALUE",
                shell_complete=completion.sets,
                help="Change one setting; repeatable. `adatsq-pipe settings` lists them.",
            ),
        )
    ):
        command = option(command)
    return command


def cluster_options(command: F) -> F:
    """Add the options for the place where units run."""
    command = click.option("--address", help="Address of a running Ray cluster, e.g. auto [default: start Ray here].")(
        command
    )
    kinds = click.Choice(["ray", "inline"])
    return click.option(
        "--executor", type=kinds, help="How to run units: on Ray, or inline in this process [default: ray]."
    )(command)


def cluster_overrides(executor: str | None, address: str | None) -> list[str]:
    """These two options as texts for `--set`."""
    overrides = [f"cluster.executor={executor!r}"] if executor else []
    return [*overrides, f"cluster.address={address!r}"] if address else overrides


@contextmanager
def run_lock(place: RunDir) -> Iterator[None]:
    """Hold the run directory's lock. If another run takes it over, stop this one."""

    def lost(message: str) -> None:
        click.echo(f"stopping: {message}", err=True)
        os.kill(os.getpid(), signal.SIGTERM)

    with place.lock(lost) as message:
        if message:
            click.echo(message, err=True)
        yield


def user_errors(command: Callable[P, T]) -> Callable[P, T]:
    """Print user errors in one line and exit with their code. Programming errors keep their traceback."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except (ConfigError, NotTaken, NoRun, NoTransformer, UnusableModel) as error:
            fail(str(error), 2)
        except (StageError, StorageError, ClusterUnreachable) as error:
            fail(str(error), 1)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                where = f" writing {error.filename}" if error.filename else ""
                fail(f"the disk is full{where}; free some space and run again. Finished units are kept", 1)
            if error.errno is None or error.filename is None:
                raise
            fail(f"{error.filename}: {error.strerror}; check that the path is right and its permissions", 1)

    return wrapped


def fail(message: str, code: int) -> NoReturn:
    """Print `error: message` on stderr and exit."""
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


def with_executors(
    config: RunConfig, place: RunDir, work: Callable[[runner.Executors, runner.Screen], T], again: str
) -> T:
    """Call `work(executors, screen)`. SIGTERM and Ctrl-C stop it between units, with exit code 75.

    `again` is the command that resumes it.
    """
    from adatsq_pipe.pipeline.screen import Screen  # imports rich, which only runs need

    screen = Screen()

    def stop(number: int, frame: object) -> None:
        executors.stop()
        screen.say("stopping after the units in progress are committed")

    executors = runner.Executors(config, place, on_made=lambda: signal.signal(signal.SIGTERM, stop))
    signal.signal(signal.SIGTERM, stop)
    try:
        return work(executors, screen)
    except (Stopped, KeyboardInterrupt):
        screen.say(f"Stopped. Finished units are kept. Resume with: {again}")
        sys.exit(STOPPED)
    except TaskFailed as error:
        click.echo(error.traceback.rstrip(), err=True)
        fail(str(error), 1)
    except (WorkerLost, ClusterUnreachable) as error:
        fail(str(error), 1)
    finally:
        executors.close()
