"""What every command shares: its options, errors in one line, exit codes, and stopping between units."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from adatsq_pipe.pipeline import config as configuration
from adatsq_pipe.pipeline.config import PRESETS, ConfigError, RunConfig
from adatsq_pipe.stages.base.errors import NotTaken, StageError
from adatsq_pipe.storage.errors import NoTransformer, StorageError
from adatsq_pipe.storage.rundir import RunDir

STOPPED = 75
DEFAULT_RUN = "adatsq-run"

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


run_dir_option = click.option(
    "--run-dir", default=DEFAULT_RUN, show_default=True, metavar="PATH|URL", help="A folder, or e.g. s3://bucket/run."
)


def options(command: F) -> F:
    """Options that say which run and which configuration."""
    for option in reversed(
        (
            run_dir_option,
            click.option(
                "--model", help=f"Local diffusers pipeline folder [default: the built-in {configuration.BUILT_IN}]."
            ),
            click.option("--preset", type=click.Choice(PRESETS), help="Start from these settings [default: w4a4]."),
            click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file of tables."),
            click.option("--set", "sets", multiple=True, metavar="TABLE.KEY=VALUE", help="One setting; repeatable."),
        )
    ):
        command = option(command)
    return command


def places(command: F) -> F:
    """Options that say where units run."""
    command = click.option("--address", help="A running Ray cluster, e.g. auto [default: start one here].")(command)
    kinds = click.Choice(["ray", "inline"])
    return click.option("--executor", type=kinds, help="Where units run [default: ray].")(command)


def placed(executor: str | None, address: str | None) -> list[str]:
    """What those options set."""
    found = [f"cluster.executor={executor!r}"] if executor else []
    return [*found, f"cluster.address={address!r}"] if address else found


@contextmanager
def held(place: RunDir) -> Iterator[None]:
    """Hold the run directory's lock; should another run take it over, this one is stopped."""

    def lost(said: str) -> None:
        click.echo(f"stopping: {said}", err=True)
        os.kill(os.getpid(), signal.SIGTERM)

    with place.lock(lost) as said:
        if said:
            click.echo(said, err=True)
        yield


def plainly(command: F) -> F:
    """Errors for people in one line with the right exit code; ours, with a traceback, stay ours."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (ConfigError, NotTaken, NoTransformer) as error:
            fail(str(error), 2)
        except (StageError, StorageError) as error:
            fail(str(error), 1)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                where = f" writing {error.filename}" if error.filename else ""
                fail(f"the disk is full{where}; free some space and run again: everything finished is kept", 1)
            raise

    return wrapped  # type: ignore[return-value]


def fail(message: str, code: int) -> NoReturn:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


def load_config(
    run: RunDir, model: str | None, preset: str | None, file: Path | None, sets: tuple[str, ...]
) -> RunConfig:
    from adatsq_pipe.storage.checkpoint import find_pipeline

    kept = configuration.kept_config(run.path) if run.exists() else None
    config = configuration.load(preset=preset, file=file, sets=sets, model=model, kept=kept)
    find_pipeline(config.model)
    return config


def working(config: RunConfig, place: RunDir, work: Callable[[Any, Any], T], again: str) -> T:
    """`work(executors, screen)`, which SIGTERM and Ctrl-C stop between units, with exit code 75."""
    from adatsq_pipe.cluster.errors import ClusterUnreachable, Stopped, TaskFailed, WorkerLost
    from adatsq_pipe.pipeline import runner
    from adatsq_pipe.pipeline.commands.screen import Screen

    screen = Screen()

    def stop(number: int, frame: object) -> None:
        executors.stop()
        screen.say("stopping: the units in hand are finished and committed first")

    executors = runner.Executors(config, place, on_made=lambda: signal.signal(signal.SIGTERM, stop))
    signal.signal(signal.SIGTERM, stop)
    try:
        return work(executors, screen)
    except (Stopped, KeyboardInterrupt):
        screen.say(f"stopped; everything finished is kept. Go on with: {again}")
        sys.exit(STOPPED)
    except TaskFailed as error:
        click.echo(error.traceback.rstrip(), err=True)
        fail(str(error), 1)
    except (WorkerLost, ClusterUnreachable) as error:
        fail(str(error), 1)
    finally:
        executors.close()
