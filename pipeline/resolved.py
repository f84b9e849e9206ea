"""The settings of a run as they are in the end, and where each comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomli_w

from adatsq_pipe.pipeline.config import RunConfig, kinds, preset_tables, sampling
from adatsq_pipe.stages.base.settings import PromptSettings, Settings
from adatsq_pipe.stages.methods._recipe import Recipe

FROM_FILE = ("prompts", "kinds", "inputs")
"""Settings that a prompts file fills, and that may not be set beside it."""

Table = dict[str, tuple[Any, str]]
"""Value and origin by key."""


def resolved(config: RunConfig, preset: str, layers: Mapping[str, Mapping[str, Any]]) -> dict[str, Table]:
    """Every setting, by table and key: its value as JSON has it, and where it comes from.

    `preset` and `layers` are those of `config.layers`, from which `config` was made.
    """
    written = {
        "the model folder's sampling.json": {"model": sampling(config.model)},
        f"the preset {preset}": preset_tables(preset),
        **layers,
    }
    tables = {name: _table(config.settings[kind], written) for name, kind in kinds().items()}
    for key in ("device", "dtype"):
        if why := getattr(config.basis, key):
            tables["compute"][key] = (tables["compute"][key][0], f"auto: {why}")
    return tables


def _table(table: Settings, written: Mapping[str, Mapping[str, Any]]) -> Table:
    values, found = table.model_dump(mode="json"), Table()
    for key, value in values.items():
        origins = [origin for origin, tables in written.items() if key in tables.get(table.table, {})]
        if isinstance(value, Mapping) and len(origins) > 1:
            origins = [", ".join(origins)]
        found[key] = (value, origins[-1] if origins else _unwritten(table, key))
    return found


def _unwritten(table: Settings, key: str) -> str:
    """Where a setting comes from that nobody wrote."""
    if getattr(table, key) == type(table).model_fields[key].get_default(call_default_factory=True):
        return "default"
    if isinstance(table, Recipe):
        return f"the method {table.method}"
    if isinstance(table, PromptSettings) and key in FROM_FILE:
        return f"{table.table}.prompts_file" if table.prompts_file else "built-in captions"
    return "it follows from other settings"


def as_plain(tables: Mapping[str, Table]) -> dict[str, dict[str, dict[str, Any]]]:
    """As JSON values: by table and key, `value` and `from`."""
    return {
        name: {key: {"value": value, "from": origin} for key, (value, origin) in table.items()}
        for name, table in tables.items()
    }


def as_toml(tables: Mapping[str, Table]) -> str:
    """As TOML that `--config` takes, with the origins as comments. What a prompts file fills is a comment too."""
    parts = []
    for name, table in tables.items():
        filled = FROM_FILE if table.get("prompts_file", ("", ""))[0] else ()
        lines = [_line(key, value, origin, comment=key in filled) for key, (value, origin) in table.items()]
        parts.append("\n".join([f"[{name}]", *lines]))
    return "\n\n".join(parts)


def _line(key: str, value: Any, origin: str, *, comment: bool) -> str:
    """A setting in one line; tables inside it are written inline."""
    text = f"{key} = {_inline(value)}  # {' '.join(origin.split())}"
    return f"# {text}" if comment else text


def _inline(value: Any) -> str:
    if value is None:
        return '"null"'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")


def _key(key: str) -> str:
    """A key, quoted where it has to be."""
    return tomli_w.dumps({key: 0}).removesuffix(" = 0\n")
