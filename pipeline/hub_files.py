"""Which files of a repository on the hub a pipeline is loaded from: one copy of each weight, nothing beside."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatch

from adatsq_pipe.storage.model_files import BESIDE, DEPTH, TEMPLATES
from adatsq_pipe.storage.model_index import INDEX

_WEIGHTS = re.compile(r"(?P<stem>[^/]+?)\.(?P<kind>safetensors|bin)(?P<index>(?:\.[\w-]+){0,2}\.json)?")
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_STEMS = ("diffusion_pytorch_model", "pytorch_model", "model")
_ROOT = (INDEX, "README.md", *BESIDE)
_UNREAD = (".md", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".gitattributes")
"""Ends of names of files in a component's folder that only people read."""
_OTHER_WEIGHTS = (".msgpack", ".h5", ".ot", ".onnx", ".onnx_data", ".pb", ".gguf", ".pt", ".pth", ".ckpt")


def files_to_load(files: Iterable[str], components: Iterable[str], variant: str = "") -> list[str]:
    """The files of `components` that `from_pretrained` reads, sorted, after model_index.json.

    A component's weights are of `variant` where it has them, else of no variant; safetensors where it has them, else
    bin. A component that is a pipeline itself has all of its folders. Files at the root, of other folders and of
    folders within a component are left out, but for a tokenizer's further chat templates, and those that the assembled
    folder has too: the card, the licence and sampling.json.
    """
    every = sorted(set(files))
    chosen = [name for name in every if any(fnmatch(name, pattern) for pattern in _ROOT) and "/" not in name]
    for component in sorted(set(components)):
        chosen += [f"{component}/{name}" for name in _within(below(every, component), variant, DEPTH)]
    return chosen


def below(files: Iterable[str], folder: str) -> list[str]:
    """The names of the files in a folder, relative to it."""
    return [name.removeprefix(f"{folder}/") for name in files if name.startswith(f"{folder}/")]


def _within(names: list[str], variant: str, depth: int) -> list[str]:
    """The files that are read of a component's folder, relative to it."""
    own = [name for name in names if "/" not in name]
    if INDEX not in own or not depth:
        return _of_component(own, variant) + [name for name in names if fnmatch(name, TEMPLATES)]
    folders = sorted({name.partition("/")[0] for name in names if "/" in name})
    return [INDEX, *(f"{f}/{name}" for f in folders for name in _within(below(names, f), variant, depth - 1))]


def weights_of(files: Iterable[str]) -> dict[str, tuple[str, str]]:
    """(variant or "", suffix) of those of `files` that are weights or their indexes."""
    return {name: kind for name in files if (kind := _kind_of(name.rpartition("/")[2]))}


def has_variant(files: Iterable[str], variant: str) -> bool:
    """Whether some of `files` are weights of the variant."""
    return any(of == variant for of, _ in weights_of(files).values())


def _of_component(names: list[str], variant: str) -> list[str]:
    weights = {name: kind for name in names if (kind := _kind_of(name))}
    best = min(weights.values(), key=lambda kind: _rank(kind, variant), default=None)
    if best is not None and _rank(best, variant)[0] > 1:
        best = None
    others = [n for n in names if n not in weights and not _WEIGHTS.fullmatch(n)]
    plain = [n for n in others if not n.endswith((*_OTHER_WEIGHTS, *_UNREAD))]
    return sorted([*plain, *(name for name, kind in weights.items() if kind == best)])


def _rank(kind: tuple[str, str], variant: str) -> tuple[int, int]:
    """The smaller, the better: the variant that is asked for, no variant, others; then safetensors before bin."""
    of, suffix = kind
    return (0 if of == variant else 1 if not of else 2), ("safetensors", "bin").index(suffix)


def _kind_of(name: str) -> tuple[str, str] | None:
    """Variant ("" for none) and suffix of a file of weights or its index; None for another file."""
    match = _WEIGHTS.fullmatch(name)
    if match is None:
        return None
    stem, _, after = _SHARD.sub("", match["stem"]).partition(".")
    before_json = (match["index"] or "").removesuffix(".json").replace(".index", "").removeprefix(".")
    return (after or before_json, match["kind"]) if stem in _STEMS else None
