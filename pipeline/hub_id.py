"""The name of a model on the hub, as people type it: `org/name`, `org/name@revision`, `hf://org/name@revision`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from adatsq_pipe.pipeline.errors import ConfigError

_SCHEME = "hf://"
_PART = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
_NAME = re.compile(rf"({_PART})/({_PART})(?:@(\S+))?", re.ASCII)


@dataclass(frozen=True)
class HubId:
    """A repository on the hub, and the branch, tag or commit that is asked for."""

    repository: str
    """`org/name`."""
    revision: str = ""
    """A branch, a tag or a commit; "" is the hub's default branch."""


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
