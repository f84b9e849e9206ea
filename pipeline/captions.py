"""The captions of a run: those of its tables, of a file, or built-in ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from adatsq_pipe.pipeline import prompts
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.stages.base.settings import PromptSettings
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings

SHOWN, LONGEST = 3, 70
"""Captions that a line shows, and characters of each."""


def with_captions(table: PromptSettings, world: str) -> tuple[PromptSettings, Mapping[str, Path]]:
    """The table with its captions: its own, those of its file, or built-in ones. And the pictures that a file names.

    Raises ConfigError.
    """
    name = table.table
    if table.inputs:
        raise ConfigError(f"{name}.inputs comes from a manifest; name it: --set {name}.prompts_file=FILE.jsonl")
    if table.prompts_file and table.prompts:
        raise ConfigError(f"{name}.prompts and {name}.prompts_file are both set; add --set {name}.prompts=[]")
    images: Mapping[str, Path] = {}
    if table.prompts_file:
        try:
            manifest = prompts.read(Path(table.prompts_file))
        except ValueError as error:
            raise ConfigError(f"{name}.prompts_file: {error}") from None
        images = manifest.images
        table = table.model_copy(update={"prompts": tuple(manifest.prompts), "inputs": tuple(manifest.inputs)})
    if not table.prompts:
        return table.model_copy(update={"prompts": tuple(_captions(table, world))}), images
    if world:
        in_the_world(table.prompts, world, f"{name}.prompts")
    return table, images


def shown(table: PromptSettings) -> str:
    """How many captions a table has, the file that they are from, and the first of them, in one line."""
    source = f" from {table.prompts_file}" if table.prompts_file else ""
    first = [repr(text if len(text) <= LONGEST else f"{text[:LONGEST]}...") for text in table.prompts[:SHOWN]]
    more = ", ..." if len(table.prompts) > SHOWN else ""
    count = len(table.prompts)
    return f"{table.table}: {count} caption{'s' * (count > 1)}{source}: {', '.join(first)}{more}"


def in_the_world(prompts: Sequence[str], world: str, where: str) -> None:
    """Refuse captions (or labels) that the built-in world has no pictures of."""
    from adatsq_pipe.stages.scenes.world.prompts import parse_prompt  # imports numpy, for built-in models only

    for prompt in prompts:
        try:
            parse_prompt(prompt, world)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None


def _captions(table: PromptSettings, world: str) -> Sequence[str]:
    """Built-in captions; those of [evaluate] are held out."""
    held_out = isinstance(table, EvaluateSettings)
    if world:
        from adatsq_pipe.stages.scenes.world import prompts  # imports numpy, for built-in models only

        split = "held_out" if held_out else "train"
        return prompts.draw_prompts(table.count, world=world, split=split, seed=table.seed)
    lines = (resources.files("adatsq_pipe.pipeline") / "presets" / "captions.txt").read_text("utf-8").splitlines()
    return lines[1 if held_out else 0 :: 2][: table.count]
