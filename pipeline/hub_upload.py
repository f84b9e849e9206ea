"""Uploading a quantized model with its card to the hub, with huggingface_hub. What it raises becomes one line."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.finished import reported
from adatsq_pipe.pipeline.hub_download import host, is_not_of_the_hub, status_of
from adatsq_pipe.pipeline.hub_files import weights_of
from adatsq_pipe.pipeline.hub_id import HubId, hub_id
from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.model_index import INDEX
from adatsq_pipe.storage.published import PublishedModel
from adatsq_pipe.storage.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """Where the model is on the hub, and the commit that has it."""

    url: str
    commit: str
    removed: list[str]
    """Weights of an earlier model that the commit removed."""


def model_to_push(run: Path) -> Path:
    """The model folder of a finished run, or `run` itself where it is a pipeline's folder.

    Raises:
        NoRun: where there is neither.
        StorageError: for an unfinished run, and for a model that is not as it was written.
    """
    if (run / INDEX).is_file() and not (run / "run.json").exists():
        folder = run.resolve()
    else:
        place = RunDir(run)
        if not place.exists():
            place.check()
        of = reported(place) if (place.model / INDEX).is_file() else None
        folder = place.model.resolve()
        if not of or folder.name != of[:16]:
            raise StorageError(f"{run} is not finished; finish it with: adatsq-pipe run --run-dir {run}")
    if damaged := PublishedModel(folder).damage(thorough=True):
        raise StorageError(f"{damaged}; restore it with: adatsq-pipe run --run-dir {run}")
    return folder


def files_of(folder: Path) -> dict[str, int]:
    """Names and bytes of what is uploaded: every file but hidden ones."""
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): path.stat().st_size
        for name, path in found.items()
        if not any(part.startswith(".") for part in name.parts)
    }


def stale_weights(there: Iterable[str], files: Iterable[str]) -> list[str]:
    """Weights and their indexes among the files `there` that would be read in place of the `files`, or beside them.

    They lie in folders of these, and are of no variant: another format, or shards where there is one file now.
    """
    ours = set(files)
    folders = {name.rpartition("/")[0] for name in ours} - {""}
    others = [name for name in there if name not in ours and name.rpartition("/")[0] in folders]
    return sorted(name for name, (variant, _) in weights_of(others).items() if not variant)


def repository_of(name: str) -> HubId:
    """The repository to upload to. Raises ConfigError."""
    asked = hub_id(name)
    if asked is None:
        raise ConfigError(f"{name} is no repository of the hub; write org/name")
    if asked.revision:
        raise ConfigError(f"{name} names a revision; write {asked.repository} --revision {asked.revision}")
    return asked


def upload(folder: Path, to: HubId, *, private: bool, revision: str, message: str) -> Uploaded:
    """Create the repository and the branch if they are not there, and commit the folder's files to it.

    Stale weights in the model's folders are removed, other files that the repository has besides stay, and files that
    it has already are not sent again.

    Raises:
        ConfigError: without a token, and where `private` is asked for and the repository is public.
        StorageError: if the hub does not take it.
    """
    from huggingface_hub import HfApi, get_token  # other commands do without

    if not get_token():
        raise ConfigError("no token is set here; log in with `hf auth login`, or set HF_TOKEN to one that may write")
    api, name = HfApi(), to.repository
    try:
        api.create_repo(name, private=private or None, exist_ok=True)
        if private and not api.model_info(name).private:
            raise ConfigError(
                f"{host()}/{name} is there already and public; leave out --private, or make it private at "
                f"{host()}/{name}/settings"
            )
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True)
        stale = stale_weights(api.list_repo_files(name, revision=revision or None), files_of(folder))
        done = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            revision=revision or None,
            commit_message=message,
            ignore_patterns=[".*", "*/.*"],
            delete_patterns=[glob.escape(file) for file in stale] or None,
        )
    except ConfigError:
        raise
    except Exception as error:  # the library raises its HTTP client's own errors too, which is another in each version
        if is_not_of_the_hub(error):
            raise
        raise StorageError(_reason(error, to)) from None
    return Uploaded(
        url=f"{host()}/{name}" + (f"/tree/{revision}" if revision else ""), commit=str(done.oid), removed=stale
    )


def _reason(error: Exception, to: HubId) -> str:
    """What went wrong and what to do, in one line without a text of the library."""
    from huggingface_hub import errors

    status = status_of(error)
    if isinstance(error, errors.HFValidationError):
        return f"{to.repository} is no name that the hub takes; write org/name with letters, digits, '-', '_' and '.'"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set; nothing can be uploaded. Run again without it"
    if status in (401, 403, 404):
        return (
            f"{host()} refuses to write to {to.repository} ({status}): the token that is set here may not; log in with "
            "`hf auth login`, or set HF_TOKEN to one that may write there"
        )
    if status:
        return f"{host()} answered {status} for {to.repository}; run again: what has been sent is not sent again"
    return (
        f"{host()} cannot be reached ({type(error.__cause__ or error).__name__}); check the network and run again: "
        "what has been sent is not sent again"
    )
