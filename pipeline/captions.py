"""The captions of a run: those of its tables, of a file, or built-in ones."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from adatsq_pipe.pipeline import prompts
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.stages.base.settings import PromptSettings
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings

SHOWN, LONGEST = 3, 70
"""Captions that a line shows, and characters of each."""
KINDS_SHOWN = 8
"""Kinds of captions that a line counts."""
NO_KIND = "no kind"
"""What captions without a kind are called where others have one."""


def with_captions(table: PromptSettings, world: str) -> tuple[PromptSettings, Mapping[str, Path]]:
    """The table with its captions: its own, those of its file, or built-in ones. And the pictures that a file names.

    Where the count was set, the first so many of them.

    Raises ConfigError.
    """
    name = table.table
    if table.inputs:
        raise ConfigError(f"{name}.inputs comes from a manifest; name it: --set {name}.prompts_file=FILE.jsonl")
    if table.prompts_file and table.prompts:
        raise ConfigError(f"{name}.prompts and {name}.prompts_file are both set; add --set {name}.prompts=[]")
    if table.prompts_file and table.kinds:
        raise ConfigError(f"{name}.kinds and {name}.prompts_file are both set; give the file's rows a column kind")
    if table.kinds and len(table.kinds) != len(table.prompts):
        raise ConfigError(
            f"{name}.kinds has {len(table.kinds)} entries and {name}.prompts has {len(table.prompts)}; "
            'give each caption one, "" for none'
        )
    images: Mapping[str, Path] = {}
    if table.prompts_file:
        try:
            manifest = prompts.read(Path(table.prompts_file))
        except ValueError as error:
            raise ConfigError(f"{name}.prompts_file: {error}") from None
        images = manifest.images
        read = {"prompts": tuple(manifest.prompts), "kinds": tuple(manifest.kinds), "inputs": tuple(manifest.inputs)}
        table = table.model_copy(update=read)
    if not table.prompts:
        ours, kinds = _captions(table, world)
        return table.model_copy(update={"prompts": tuple(ours), "kinds": tuple(kinds)}), images
    if world:
        in_the_world(table.prompts, world, f"{name}.prompts")
    if "count" in table.model_fields_set:
        cut = {field: getattr(table, field)[: table.count] for field in ("prompts", "kinds", "inputs")}
        table = table.model_copy(update=cut)
    return table.model_copy(update={"kinds": table.kinds if any(table.kinds) else ()}), images


def shown(table: PromptSettings) -> str:
    """In one line: how many captions a table has, of which kinds, from which file, and the first of them."""
    source = f" from {table.prompts_file}" if table.prompts_file else ""
    first = [repr(text if len(text) <= LONGEST else f"{text[:LONGEST]}...") for text in table.prompts[:SHOWN]]
    more = ", ..." if len(table.prompts) > SHOWN else ""
    count = len(table.prompts)
    counted = f" ({counts(table.kinds)})" if table.kinds else ""
    return f"{table.table}: {count} caption{'s' * (count > 1)}{source}{counted}: {', '.join(first)}{more}"


def counts(kinds: Sequence[str]) -> str:
    """How many captions there are of each kind: "hands 3, faces 2"."""
    numbers = Counter(kind or NO_KIND for kind in kinds)
    parts = [f"{kind} {number}" for kind, number in list(numbers.items())[:KINDS_SHOWN]]
    return ", ".join(parts) + (f", and {len(numbers) - KINDS_SHOWN} more kinds" if len(numbers) > KINDS_SHOWN else "")


def origin(table: EvaluateSettings, world: str) -> str:
    """Where the held-out captions of a resolved table come from, and their kinds, in a few words."""
    kinds = f" ({counts(table.kinds)})" if table.kinds else ""
    if table.prompts_file:
        return f"{len(table.prompts)} from {Path(table.prompts_file).name}{kinds}"
    if (table.prompts, table.kinds) != tuple(map(tuple, _captions(table, world))):
        return f"{len(table.prompts)} from evaluate.prompts{kinds}"
    if world:
        return f"{len(table.prompts)} held-out ones of the built-in world"
    return f"{len(table.prompts)} of the built-in stress captions{kinds}"


def in_the_world(prompts: Sequence[str], world: str, where: str) -> None:
    """Refuse captions (or labels) that the built-in world has no pictures of."""
    from adatsq_pipe.stages.scenes.world.prompts import parse_prompt  # imports numpy, for built-in models only

    for prompt in prompts:
        try:
            parse_prompt(prompt, world)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None


def _captions(table: PromptSettings, world: str) -> tuple[Sequence[str], Sequence[str]]:
    """Built-in captions and their kinds (none, or one each); those of [evaluate] are held out."""
    held_out = isinstance(table, EvaluateSettings)
    if world:
        from adatsq_pipe.stages.scenes.world import prompts  # imports numpy, for built-in models only

        split = "held_out" if held_out else "train"
        return prompts.draw_prompts(table.count, world=world, split=split, seed=table.seed), ()
    if held_out:
        chosen = stress_captions()[: table.count]
        return [prompt for _, prompt in chosen], [kind for kind, _ in chosen]
    return _preset("captions.txt").splitlines()[::2][: table.count], ()


def stress_captions() -> list[tuple[str, str]]:
    """(kind, caption) of the built-in captions that quantized models of real pictures get wrong first: the first of
    every kind, then the second of every kind, and so on."""
    by_kind: dict[str, list[tuple[str, str]]] = {}
    for line in _preset("stress_captions.jsonl").splitlines():
        row = json.loads(line)
        by_kind.setdefault(row["kind"], []).append((row["kind"], row["prompt"]))
    rounds = itertools.zip_longest(*by_kind.values())
    return [caption for each in rounds for caption in each if caption is not None]


def _preset(name: str) -> str:
    return (resources.files("adatsq_pipe.pipeline") / "presets" / name).read_text("utf-8")
