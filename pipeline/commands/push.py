"""`push`: the quantized model and its card, to a repository of the hub."""

from __future__ import annotations

from pathlib import Path

import click

from adatsq_pipe.pipeline.commands.layout import aligned, print_json
from adatsq_pipe.pipeline.commands.shell import example, json_option, user_errors
from adatsq_pipe.pipeline.hub_upload import files_of, model_to_push, repository_of, upload
from adatsq_pipe.stages.architecture.memory import shown

MESSAGE = "Upload the model, quantized with adatsq-pipe"


@click.command(
    short_help="Upload the quantized model to the hub.",
    epilog=example("push adatsq-run org/name --private"),
)
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("repository", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Make the repository private, if it is new.")
@click.option("--revision", default="", help="Branch to upload to; made if it is not there [default: main].")
@click.option("--message", default=MESSAGE, show_default=True, help="Message of the commit.")
@click.option("--dry-run", is_flag=True, help="List the files and their sizes, and upload nothing.")
@json_option
@user_errors
def push(run: Path, repository: str, private: bool, revision: str, message: str, dry_run: bool, as_json: bool) -> None:
    """Upload the quantized model of RUN, with its card, to ORG/NAME on the hub.

    RUN is the run directory of a finished run, or a model folder such as `export` writes. The repository is made if it
    is not there; weights of an earlier model in the same folders are removed, other files in it stay. The token is
    that of `hf auth login`, or HF_TOKEN.
    """
    to = repository_of(repository)
    folder = model_to_push(run)
    files = files_of(folder)
    total = sum(files.values())
    plain: dict[str, object] = {"repository": to.repository, "bytes": total, "files": files}
    if dry_run:
        if as_json:
            print_json({**plain, "url": None, "commit": None, "removed": None})
            return
        click.echo(aligned([(name, shown(size)) for name, size in files.items()]))
        click.echo(f"{len(files)} files, {shown(total)}, would go to {to.repository}; nothing was uploaded")
        return
    done = upload(folder, to, private=private, revision=revision, message=message)
    if as_json:
        print_json({**plain, "url": done.url, "commit": done.commit, "removed": done.removed})
        return
    click.echo(f"{done.url}: {len(files)} files, {shown(total)}, commit {done.commit}")
    if done.removed:
        click.echo(f"removed, as weights of an earlier model: {', '.join(done.removed)}")
