"""`export`: the quantized model in another format."""

from __future__ import annotations

from pathlib import Path

import click

from adatsq_pipe.pipeline.commands.layout import print_json
from adatsq_pipe.pipeline.commands.shell import example, json_option, user_errors
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.stages.export.formats import _formats
from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.published import PublishedModel
from adatsq_pipe.storage.rundir import RunDir


@click.command(
    short_help="Write the quantized model in another format.",
    epilog=example("export adatsq-run --format dequantized"),
)
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--format", "wanted", required=True, help=f"Format to write: {', '.join(_formats.formats())}.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder to create [default: RUN/exports/FORMAT, or MODEL-FORMAT].",
)
@json_option
@user_errors
def export(run: Path, wanted: str, out: Path | None, as_json: bool) -> None:
    """Write the quantized model of RUN in another format.

    RUN is a run directory, or the model folder itself.
    """
    known = _formats.formats()
    if wanted not in known:
        raise ConfigError(f"unknown format {wanted!r}; choose from {', '.join(known)}")
    of_run = (run / "model" / "model_index.json").exists()
    if not of_run and not (run / "model_index.json").exists():
        RunDir(run).check()
        raise StorageError(f"{run} is not finished; finish it with: adatsq-pipe run --run-dir {run}")
    source = run / "model" if of_run else run
    if damaged := PublishedModel(source.resolve()).damage(thorough=True):
        raise StorageError(f"{damaged}; restore it with: adatsq-pipe run --run-dir {run}")
    out = out or (run / "exports" / wanted if of_run else run.with_name(f"{run.name}-{wanted}"))
    if out.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"--out {out} is inside the exported model; choose a folder outside it")
    description = _formats.export(wanted, source.resolve(), out.resolve())
    if as_json:
        print_json({"folder": str(out), "format": wanted, "description": description})
        return
    click.echo(f"{out}: {description}")
