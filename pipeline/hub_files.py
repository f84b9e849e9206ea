"""Which files of a repository on the hub a pipeline is loaded from: one copy of each weight, nothing beside."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatch

from adatsq_pipe.storage.model_files import BESIDE

_WEIGHTS = re.compile(r"(?P<stem>[^/]+?)\.(?P<kind>safetensors|bin)(?P<index>(?:\.[\w-]+){0,2}\.json)?")
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_STEMS = ("diffusion_pytorch_model", "pytorch_model", "model")
_ROOT = ("model_index.json", "README.md", *BESIDE)
_UNREAD = (".md", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".gitattributes")
"""Ends of names of files in a component's folder that only people read."""
_OTHER_WEIGHTS = (".msgpack", ".h5", ".ot", ".onnx", ".onnx_data", ".pb", ".gguf", ".pt", ".pth", ".ckpt")


def files_to_load(files: Iterable[str], components: Iterable[str], variant: str = "") -> list[str]:
    """The files of `components` that `from_pretrained` reads, sorted, after model_index.json.

    A component's weights are of `variant` where it has them, else of no variant; safetensors where it has them, else
    bin. Files at the root, of other folders and of folders within a component are left out, but those that the
    assembled folder has too: the card, the licence and sampling.json.
    """
    every = sorted(set(files))
    chosen = [name for name in every if any(fnmatch(name, pattern) for pattern in _ROOT) and "/" not in name]
    for component in sorted(set(components)):
        inside = [name for name in every if name.startswith(f"{component}/") and name.count("/") == 1]
        chosen += [f"{component}/{name}" for name in _of_component([n.partition("/")[2] for n in inside], variant)]
    return chosen


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
