"""The request that a run directory stores, and the configuration that a command makes from it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

from adatsq_pipe.pipeline.compute import kept_by
from adatsq_pipe.pipeline.config import RunConfig, load
from adatsq_pipe.pipeline.devices import placed, workers_gpus
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.hub_id import named_model
from adatsq_pipe.stages.architecture import support
from adatsq_pipe.stages.base.errors import NotTaken
from adatsq_pipe.stages.base.settings import DataSettings, ModelSettings
from adatsq_pipe.stages.evaluation import perceptual
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings
from adatsq_pipe.stages.text.encoders import TextEncoderSettings, check_encoders
from adatsq_pipe.storage.checkpoint import find_pipeline
from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.files import read_text
from adatsq_pipe.storage.rundir import RunDir


def read_request(run: Path) -> dict[str, Any] | None:
    """The request of the previous run in this directory; None if there was none."""
    path = run / "config.toml"
    try:
        request = tomllib.loads(read_text(path))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path} is not TOML ({error}); correct it, or give --preset to start from one") from None
    tables = request.get("tables", {})
    if not set(request) <= {"preset", "tables"} or not isinstance(tables, dict):
        raise StorageError(
            f'{path} holds {", ".join(request)}; it takes preset = "..." and settings as [tables.search] and so on; '
            "correct it, or give --preset to start from one"
        )
    return request


def write_request(run: RunDir, config: RunConfig) -> None:
    """Store the request in the run directory, so that later commands start from it."""
    text = tomli_w.dumps(config.request)
    path = run.path / "config.toml"
    if not path.exists() or path.read_bytes() != text.encode():
        run.write("config.toml", text)


@contextmanager
def kept_request(run: RunDir) -> Iterator[None]:
    """Inside, a request that is refused before any work (NotTaken) leaves the earlier one in place."""
    path = run.path / "config.toml"
    before = path.read_bytes() if path.exists() else None
    try:
        yield
    except NotTaken:
        if before is not None:
            run.write("config.toml", before.decode())
        raise


def load_config(
    run: RunDir, model: str | None, preset: str | None, file: Path | None, sets: tuple[str, ...]
) -> RunConfig:
    """The configuration of these options, on top of the run directory's own. Raises ConfigError, NoTransformer."""
    previous = read_request(run.path) if preset is None and run.exists() else None
    config = load(preset=preset, file=file, sets=sets, model=model, previous=previous, kept=kept_by(run))
    name = config.settings[ModelSettings].path
    if not config.model.is_dir() and (hub := named_model(name)):
        raise ConfigError(f"{hub} is not in the hub's cache ({config.model}); `adatsq-pipe run` downloads it")
    find_pipeline(config.model)
    return config


def load_to_run(
    run: RunDir, model: str | None, preset: str | None, file: Path | None, sets: tuple[str, ...]
) -> RunConfig:
    """The same for a command that computes: where `auto` depends on a running cluster, the cluster is asked, and
    workers have the GPUs that are there. Raises ClusterUnreachable too."""
    previous = read_request(run.path) if preset is None and run.exists() else None
    config = load(
        preset=preset,
        file=file,
        sets=sets,
        model=model,
        previous=previous,
        kept=kept_by(run),
        count_gpus=workers_gpus,
        fetch=True,
    )
    find_pipeline(config.model)
    return placed(config)


def check_model(config: RunConfig) -> None:
    """Raise NotTaken if the model cannot be quantized, or not with these prompts and call arguments, or if a metric is
    asked for that is not at hand."""
    perceptual.check(config.settings[EvaluateSettings])
    prompts = [*config.settings[DataSettings].prompts, *config.settings[EvaluateSettings].prompts]
    support.check_pipeline(config.model, prompts, config.prompt_arguments(), config.settings[ModelSettings].call)
    check_encoders(config.model, config.settings[TextEncoderSettings])
