"""The name of a model on the hub, as people type it: `org/name`, `org/name@revision`, `hf://org/name@revision`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from adatsq_pipe.pipeline.errors import ConfigError

_SCHEME = "hf://"
_PART = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
NO_ORGANIZATION = (
    "model",
    "models",
    "checkpoint",
    "checkpoints",
    "weights",
    "output",
    "outputs",
    "runs",
    "data",
    "tmp",
    "home",
)
"""Names that begin a relative path, and no organization of the hub has."""
_NAME = re.compile(rf"({_PART})/({_PART})(?:@(\S+))?", re.ASCII)


@dataclass(frozen=True)
class HubId:
    """A repository on the hub, and the branch, tag or commit that is asked for."""

    repository: str
    """`org/name`."""
    revision: str = ""
    """A branch, a tag or a commit; "" is the hub's default branch."""

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.revision else self.repository


def hub_id(name: str) -> HubId | None:
    """The repository that `name` means; None where it cannot be one. Does not look whether a folder has that name.

    Raises:
        ConfigError: for a name that begins with `hf://` and names no repository.
    """
    explicit = name.startswith(_SCHEME)
    match = _NAME.fullmatch(name.removeprefix(_SCHEME))
    if match and not any(mark in part for part in match.groups("")[:2] for mark in ("--", "..")):
        return HubId(f"{match[1]}/{match[2]}", match[3] or "")
    if explicit:
        raise ConfigError(
            f"--model {name} names no repository of the hub; write hf://org/name or hf://org/name@revision"
        )
    return None


def named_model(name: str) -> HubId | None:
    """The repository that a user means with --model; None for a folder.

    A folder that is there goes before a repository of its name, but not where the name begins with `hf://`.

    Raises:
        ConfigError: as `hub_id`.
    """
    if name.startswith(_SCHEME):
        return hub_id(name)
    if name.partition("/")[0].lower() in (*NO_ORGANIZATION, "scenes") or Path(name).expanduser().exists():
        return None
    return hub_id(name)
