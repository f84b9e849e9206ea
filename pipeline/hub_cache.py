"""The hub's cache on this machine: the folder of a repository there, whether it is whole, and under which commit.

Nothing here asks the hub. A folder is whole where it has every file that the pipeline is loaded from: by the list of
the repository's files that the download left, else by what model_index.json and the indexes of weights name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from adatsq_pipe.pipeline.hub_files import files_to_load, has_variant, weights_of
from adatsq_pipe.pipeline.hub_id import HubId
from adatsq_pipe.storage.files import read_json_object
from adatsq_pipe.storage.model_files import TEMPLATES
from adatsq_pipe.storage.model_files import components as components_in
from adatsq_pipe.storage.model_index import INDEX, is_component

_COMMIT = re.compile("[0-9a-f]{40}")
_ALSO = ("README.md", "LICENSE", "LICENCE", "NOTICE", "COPYING")
"""Files of the root that no pipeline is loaded from: other programs that fill the cache leave them out."""


@dataclass(frozen=True)
class Snapshot:
    """A repository at a commit, in the hub's cache."""

    folder: Path
    name: str
    """`org/name@commit`: the same files whenever it is resolved."""


def is_commit(revision: str) -> bool:
    """Whether it is a whole commit hash, which always means the same files."""
    return _COMMIT.fullmatch(revision) is not None


def repository_folder(hub: HubId) -> Path:
    """Where the cache keeps the repository, whether it is there or not."""
    from huggingface_hub import constants  # `status` of a local model does without

    return Path(constants.HF_HUB_CACHE).expanduser() / f"models--{hub.repository.replace('/', '--')}"


def expected(hub: HubId) -> Snapshot:
    """Where the snapshot is in the cache, or would be if it were there."""
    home = repository_folder(hub)
    commit = hub.revision if is_commit(hub.revision) else _reference(home, hub.revision or "main")
    folder = home / "snapshots" / (commit or hub.revision or "main")
    return Snapshot(folder, f"{hub.repository}@{commit}" if commit else str(hub))


def cached(hub: HubId, variant: str = "", *, weights: bool = True) -> Snapshot | None:
    """The whole snapshot in the cache (whole but for its weights without `weights`); None if files are missing."""
    found = expected(hub)
    return found if not missing(hub, found.folder, variant, weights=weights) else None


def missing(hub: HubId, folder: Path, variant: str = "", *, weights: bool = True) -> list[str]:
    """What the snapshot in `folder` lacks: names of files, or of components that do not load."""
    parts = component_names(folder)
    if not parts:
        return [INDEX]
    listed = _listed(hub, folder.name)
    if listed is None and not weights:
        return []
    if listed is None and variant:
        return [] if has_variant(files_in(folder), variant) else [f"weights of the variant {variant}"]
    if listed is None:
        return [one.name for one in components_in(folder).values() if one.fault]
    wanted = [name for name in files_to_load(listed, parts, variant) if not name.startswith(_ALSO)]
    left_out = set[str]() if weights else set(weights_of(wanted))
    return [name for name in wanted if name not in left_out and not (folder / name).is_file()]


def component_names(folder: Path) -> list[str]:
    """The components that model_index.json names; empty without a readable one."""
    try:
        index = read_json_object(folder / INDEX)
    except (OSError, ValueError):
        return []
    return [name for name, kind in index.items() if isinstance(kind, list) and is_component(kind) and kind[0]]


def files_in(folder: Path) -> list[str]:
    """Names of the files in a pipeline's folder, in the folders in it, and in those of components that are pipelines or
    have further chat templates, as a repository lists them; links too."""
    found = list[str]()
    for place, folders, files in os.walk(folder):
        inside = os.path.relpath(place, folder)
        deep = inside == "." or INDEX in files
        folders[:] = [n for n in folders if not n.startswith(".") and (deep or n == TEMPLATES.partition("/")[0])]
        found += [name if inside == "." else f"{inside}/{name}" for name in files if not name.startswith(".")]
    return sorted(found)


def _reference(home: Path, revision: str) -> str:
    """The commit that a branch or a tag meant when it was last downloaded; "" if it never was."""
    if not home.is_dir() or ".." in revision.split("/"):
        return ""
    try:
        commit = (home / "refs" / revision).read_text("utf-8").strip()
    except (OSError, ValueError):
        return ""
    return commit if is_commit(commit) else ""


def _listed(hub: HubId, commit: str) -> Iterable[str] | None:
    """The repository's files as the download left their list; None where there is none."""
    try:  # older versions of the library leave no list
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError
    except ImportError:
        return None
    try:
        return [file.path for file in get_cached_repo_tree(hub.repository, revision=commit)]
    except (CachedRepoTreeNotFoundError, OSError, ValueError):
        return None
