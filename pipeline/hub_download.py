"""Downloading a pipeline from the hub into its cache: the files that it is loaded from, and no other.

huggingface_hub does it, with its own progress bars, endpoint (HF_ENDPOINT), token (HF_TOKEN, `hf auth login`) and cache
(HF_HOME). What it raises becomes one line that says what to do. No line quotes its texts: a URL may hold a secret.
"""

from __future__ import annotations

import glob
from pathlib import Path
from urllib.parse import urlsplit

from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.hub_cache import Snapshot, cached, component_names, is_commit, missing, repository_folder
from adatsq_pipe.pipeline.hub_files import files_to_load, weights_of
from adatsq_pipe.pipeline.hub_id import HubId
from adatsq_pipe.pipeline.variant_folder import check_variant
from adatsq_pipe.storage.model_index import INDEX


def snapshot(hub: HubId, variant: str = "", *, weights: bool = True) -> Snapshot:
    """The repository in the cache: what is whole there without a word to the hub, else downloaded.

    Without `weights` only the configs and vocabularies are.

    Raises:
        ConfigError: in one line, if it cannot be had.
    """
    return cached(hub, variant, weights=weights) or _downloaded(hub, variant, weights=weights)


def _downloaded(hub: HubId, variant: str, *, weights: bool) -> Snapshot:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download  # local models do without

    try:
        info = HfApi().model_info(hub.repository, revision=hub.revision or None)
        every, commit = [file.rfilename for file in info.siblings or ()], str(info.sha)
        if INDEX not in every:
            raise ConfigError(
                f"{hub} has no {INDEX}, so it is no diffusers pipeline; name a repository in diffusers' layout "
                f"(see {_page(hub)}/tree/{hub.revision or 'main'})"
            )
        parts = component_names(Path(hf_hub_download(hub.repository, INDEX, revision=commit)).parent)
        check_variant(str(hub), every, parts, variant)
        wanted = files_to_load(every, parts, variant)
        left_out = set[str]() if weights else set(weights_of(wanted))
        wanted = [name for name in wanted if name not in left_out]
        # The revision as it was asked for: the cache then remembers which commit it means.
        revision = hub.revision or None
        folder = Path(
            snapshot_download(hub.repository, revision=revision, allow_patterns=[glob.escape(name) for name in wanted])
        )
    except ConfigError:
        raise
    except Exception as error:  # the library raises its HTTP client's own errors too, which is another in each version
        if is_not_of_the_hub(error):
            raise
        raise ConfigError(_reason(error, hub)) from None
    if absent := missing(hub, folder, variant, weights=weights):
        raise ConfigError(f"{hub} lacks {absent[0]} after its download; run again: what has arrived is kept")
    return Snapshot(folder, f"{hub.repository}@{folder.name}")


def is_not_of_the_hub(error: Exception) -> bool:
    """Whether it is an error of this machine's disk, or a mistake in a program, whose traceback is wanted."""
    mistakes = (TypeError, AttributeError, LookupError, AssertionError, Warning)
    return isinstance(error, mistakes) or (isinstance(error, OSError) and error.errno is not None)


def _reason(error: Exception, hub: HubId) -> str:
    """What went wrong and what to do, in one line without a text of the library."""
    from huggingface_hub import errors, get_token

    known = "the token that is set here has no access to it" if get_token() else "no token is set here"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{hub.repository} is gated, and {known}; accept its terms at {_page(hub)}, then log in with "
            "`hf auth login`, or set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{hub.repository} has no revision {hub.revision!r}; name a branch, a tag or a commit of "
            f"{_page(hub)}/tree/main, or leave it out"
        )
    status = status_of(error)
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no model {hub.repository} at {host()}, or it is private and {known}; there is no folder of "
            "that name here either. Check the name, or log in with `hf auth login`"
        )
    if isinstance(error, errors.HFValidationError):
        return f"{hub} is no name of the hub; write org/name or org/name@revision"
    if status in (401, 403):
        return (
            f"{host()} refuses {hub.repository} ({status}), and {known}; log in again with `hf auth login`, or "
            "correct HF_TOKEN"
        )
    partly = _partly(hub)
    if isinstance(error, errors.OfflineModeIsEnabled) or isinstance(error.__cause__, errors.OfflineModeIsEnabled):
        return (
            f"{hub} is {partly} the cache {repository_folder(hub).parent}, and HF_HUB_OFFLINE is set; run once without "
            "it, or name a local folder"
        )
    if status:
        return f"{host()} answered {status} for {hub.repository}; run again later: what has arrived is kept"
    return (
        f"{host()} cannot be reached ({type(error.__cause__ or error).__name__}), and {hub} is {partly} the cache "
        f"{repository_folder(hub).parent}; check the network and run again (what has arrived is kept), or name a local "
        "folder"
    )


def _partly(hub: HubId) -> str:
    home = repository_folder(hub) / "snapshots"
    at = home / hub.revision if is_commit(hub.revision) else home
    return "only partly in" if at.is_dir() and any(at.iterdir()) else "not in"


def status_of(error: Exception) -> int:
    """The status that the hub answered with; 0 where it did not answer."""
    for one in (error, error.__cause__):
        answer = getattr(one, "response", None)
        if answer is not None:
            return int(answer.status_code)
    return 0


def host() -> str:
    """The hub's address without what may be secret in it."""
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def _page(hub: HubId) -> str:
    return f"{host()}/{hub.repository}"
