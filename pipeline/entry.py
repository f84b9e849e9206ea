"""The Python entry point beside the command line: `adatsq_pipe.pipeline.quantize`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adatsq_pipe.pipeline import report, runner
from adatsq_pipe.pipeline.devices import check_device
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.request import check_model, kept_request, load_to_run, write_request
from adatsq_pipe.pipeline.screen import Screen
from adatsq_pipe.pipeline.summary import Summary, read_summary
from adatsq_pipe.pipeline.toml_tables import as_sets, merged
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.stage import STAGES
from adatsq_pipe.stages.methods._layer import check_recipe
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.storage.rundir import RunDir


def quantize(model: str | Path, run_dir: str | Path, *, preset: str | None = None, **settings: object) -> Summary:
    """Quantize a diffusers pipeline and return the run in numbers: `adatsq-pipe run` as a function.

    The quantized pipeline is `run_dir/model`. Progress goes to stderr.
    Call it again to resume: finished units are kept.

    Args:
        model: A diffusers pipeline folder, "org/name[@revision]" of the hub, or a built-in name, "scenes/flux-dev".
        run_dir: A folder, or a URL such as "s3://bucket/run". It keeps the settings of earlier runs.
        preset: Settings to start from, "w4a4" (default) or "w3a3". It replaces the settings that `run_dir` keeps.
        settings: Tables of settings, `search={"budget": 3.6}`, or single ones, `**{"search.budget": 3.6}`.
            `adatsq-pipe settings` lists them. `cluster={"executor": "inline"}` runs without Ray.

    Raises:
        ConfigError: for an unknown or impossible setting; nothing is started.
        NotTaken, NoTransformer: if the model cannot be quantized; nothing is started.
        StageError, StorageError, TaskFailed, WorkerLost, ClusterUnreachable: if the run fails.
    """
    place = RunDir.open(str(run_dir))
    config = load_to_run(place, str(model), preset, None, tuple(as_sets(tables_of(settings))))
    check_model(config)
    try:
        check_recipe(config.settings[Recipe], config.model)
    except StageError as error:
        raise ConfigError(str(error)) from None
    if not place.exists():
        check_device(config)
    place.create()
    screen = Screen()
    executors = runner.Executors(config, place)

    def stop(message: str) -> None:
        screen.say(f"stopping: {message}")
        executors.stop()

    with place.lock(stop) as message:
        if message:
            screen.say(message)
        try:
            with kept_request(place):
                write_request(place, config)
                place.add_prompt_images(config.images)
                runner.execute(
                    config,
                    place,
                    list(STAGES),
                    executors,
                    screen,
                    conclude=lambda steps, context: report.write(
                        config, place, steps, context, screen.say, plots=executors.ahead
                    ),
                )
        finally:
            executors.close()
    return read_summary(place.report)


def tables_of(settings: Mapping[str, object]) -> dict[str, object]:
    """Settings as tables: "search.budget" becomes search = {budget}. Raises ConfigError for a name without a table."""
    tables: dict[str, object] = {}
    for name, value in settings.items():
        if "." not in name and not isinstance(value, Mapping):
            raise ConfigError(f"{name}={value!r} names no table; write {name}={{...}} or 'table.{name}'")
        for key in reversed(name.split(".")):
            value = {key: value}
        assert isinstance(value, dict)
        tables = merged(tables, value)
    return tables
