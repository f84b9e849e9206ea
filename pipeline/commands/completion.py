"""What the shell offers for options and arguments whose values are ours. Imports no torch: it runs at every Tab."""

from __future__ import annotations

import json

import click
from click.shell_completion import CompletionItem

from adatsq_pipe.pipeline.config import kinds
from adatsq_pipe.stages.base.stage import STAGES
from adatsq_pipe.stages.scenes.builtin_models import builtin_models


def tables(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The tables of settings."""
    return [CompletionItem(name) for name in kinds() if name.startswith(incomplete)]


def stages(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The stages, after a comma or two dots too."""
    cut = max(incomplete.rfind(",") + 1, incomplete.rfind("..") + 2 if ".." in incomplete else 0)
    before, begun = incomplete[:cut], incomplete[cut:]
    names = [*STAGES] if before else ["all", *STAGES]
    return [CompletionItem(before + name) for name in names if name.startswith(begun)]


def models(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The built-in models, and folders."""
    names = [CompletionItem(name) for name in builtin_models() if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="dir")]


def sets(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """`table.key=`: first the tables, then the keys of one; of the only key that fits, with its default too.

    Shells put a space behind the only completion. With two they stop behind the sign, where the value goes.
    """
    name, dot, begun = incomplete.partition(".")
    if not dot:
        found = [f"{table}." for table in kinds() if table.startswith(name)]
        return sets(context, parameter, found[0]) if len(found) == 1 else [CompletionItem(text) for text in found]
    if name not in kinds():
        return []
    fields = kinds()[name].model_fields
    keys = [key for key in fields if key.startswith(begun)]
    items = [CompletionItem(f"{name}.{key}=") for key in keys]
    if len(keys) == 1:
        default = fields[keys[0]].get_default(call_default_factory=True)
        items.append(CompletionItem(f"{name}.{keys[0]}={json.dumps(default, default=list)}"))
    return items
