"""Tables of settings as TOML and as `--set table.key=value` texts: read, written and laid over each other."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.storage.files import read_text


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Tables laid over each other; within [model.call] single keys, else whole values."""
    out: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
            out[key] = merged(out[key], value) if both else value
    return out


def parse_set(texts: Sequence[str]) -> dict[str, Any]:
    """`--set table.key=value` options as tables. Values are TOML; a bare word is text."""
    tables: dict[str, Any] = {}
    for text in map(as_utf_8, texts):
        path, sign, value = text.partition("=")
        keys = path.strip().split(".")
        if not sign or len(keys) < 2:
            raise ConfigError(f"--set takes table.key=value, e.g. search.budget=3.6; got {text!r}")
        try:
            parsed = tomllib.loads(f"x = {value}")["x"]
        except tomllib.TOMLDecodeError:
            parsed = value
        except RecursionError:
            raise ConfigError(f"--set {path.strip()}: its value is nested too deeply") from None
        for key in reversed(keys):
            parsed = {key: parsed}
        tables = merged(tables, parsed)
    return tables


def as_utf_8(argument: str) -> str:
    """A command line's argument as UTF-8, in whatever encoding the locale has read it. Raises ConfigError."""
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        raise ConfigError(f"{argument!r} is not UTF-8; write it so") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a `--config` file. Raises ConfigError if it is absent or not TOML."""
    try:
        return tomllib.loads(read_text(path))
    except FileNotFoundError:
        raise ConfigError(f"--config {path}: there is no such file") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read ({error.strerror})") from None


def as_sets(tables: Mapping[str, object], above: tuple[str, ...] = ()) -> Iterator[str]:
    """TOML tables as texts for `--set`. Raises ConfigError for a key that `--set` cannot express."""
    for key, value in tables.items():
        listed = isinstance(value, list) and any(isinstance(item, Mapping) for item in value)
        if "." in key or "=" in key or listed:
            raise ConfigError(f"the key {key!r} of the --config file cannot be sent to the cluster; use --set instead")
        path = (*above, key)
        if isinstance(value, Mapping):
            yield from as_sets(value, path)
        else:
            written = tomli_w.dumps({"x": value}).removeprefix("x = ").strip()
            on_one_line = re.sub(r"\s*\n\s*", " ", written)
            yield f"{'.'.join(path)}={on_one_line}"
