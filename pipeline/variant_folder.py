"""The folder of a model in one variant of its weights (`.fp16.safetensors`): links with the names that are read.

`from_pretrained(folder)` then loads the variant as it loads any pipeline, and so does whatever else reads the folder:
the fingerprint, the survey of weights, the assembled copy. The links lie among huggingface_hub's assets (HF_HOME), in a
folder that is laid out as its cache is: `snapshots/NAME` of links, and `blobs`, which leads to what they may point to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.hub_cache import component_names, files_in
from adatsq_pipe.pipeline.hub_files import files_to_load, has_variant, weights_of
from adatsq_pipe.storage.fingerprint import digest

_LIBRARY = "adatsq-pipe"
_SHARD = re.compile(r"-\d{5}-of-\d{5}")


def variant_folder(model: Path, variant: str) -> Path:
    """The links to the files of `model` in that variant, made or brought up to date.

    Raises:
        ConfigError: if no component has the variant.
    """
    from huggingface_hub import cached_assets_path  # runs without a variant do without

    files, parts = files_in(model), component_names(model)
    check_variant(str(model), files, parts, variant)
    cached = model.parent.name == "snapshots"
    name = model.parent.parent.name if cached else f"{model.name}-{digest(str(model))[:12]}"
    home = Path(cached_assets_path(_LIBRARY, namespace=variant, subfolder=name))
    (home / "snapshots").mkdir(parents=True, exist_ok=True)
    _link(home / "blobs", model.parent.parent / "blobs" if cached else model)
    folder = home / "snapshots" / model.name
    links = {plain_name(file, variant): model / file for file in files_to_load(files, parts, variant)}
    _bring_up_to_date(folder, links)
    return folder


def plain_name(file: str, variant: str) -> str:
    """The name under which the file is read where no variant is asked for. Shards keep theirs: an index names them."""
    if file not in weights_of([file]) or _SHARD.search(file):
        return file
    return file.replace(f".index.{variant}.json", ".index.json").replace(f".{variant}.", ".")


def check_variant(model: str, files: Iterable[str], components: Iterable[str], variant: str) -> None:
    """Raise ConfigError if no component has weights of the variant, or one has weights of other variants alone."""
    parts = set(components)
    inside = [name for name in files if name.count("/") == 1 and name.partition("/")[0] in parts]
    known = weights_of(inside)
    named = " and ".join(sorted({of for of, _ in known.values()} - {""}))
    if variant and not has_variant(inside, variant):
        has = f"its variants: {named}" if named else "it has no variants"
        raise ConfigError(f"model.variant is {variant!r}, and no component of {model} has it; {has}")
    chosen = set(files_to_load(inside, parts, variant))
    for part in sorted(parts):
        own = {name for name in known if name.startswith(f"{part}/")}
        if own and not own & chosen:
            raise ConfigError(f"{part} of {model} has weights of the variant {named} alone; set model.variant to it")


def _bring_up_to_date(folder: Path, links: Mapping[str, Path]) -> None:
    for file in files_in(folder):
        if file not in links:
            (folder / file).unlink(missing_ok=True)
    for file, target in links.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        _link(folder / file, target)


def _link(link: Path, target: Path) -> None:
    """Make it, or turn it to the target; another process may do the same."""
    if link.is_symlink() and os.readlink(link) == str(target):
        return
    new = link.with_name(f".{link.name}.{os.getpid()}")
    new.symlink_to(target)
    os.replace(new, link)
