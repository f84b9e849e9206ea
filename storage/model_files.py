"""Which files of a pipeline folder its loader reads: by component, by the index of its weights, and without a variant.

`DiffusionPipeline.from_pretrained(folder)` reads `model_index.json`, and of every component that it names the config or
the vocabulary and one set of weights. A digest, a copy and a reader of weights all take the files listed here, so that
other files in the folder (a note, a variant, a checkpoint, a run directory) change nothing. Nothing here imports torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from adatsq_pipe.storage.errors import UnusableModel
from adatsq_pipe.storage.files import is_safe_relative, read_json_object
from adatsq_pipe.storage.model_index import INDEX, is_component

BESIDE = ("sampling.json", "LICENSE*", "LICENCE*", "NOTICE*", "COPYING*")
"""Files of the root that no loader reads and that a copy has all the same: arguments of the call, and the licence."""

_DIFFUSERS = (
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
)
"""Where diffusers looks for a model's weights, in its order."""
_TRANSFORMERS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where transformers looks for a model's weights, in its order."""
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
"""A LoRA beside a transformers model, which transformers loads with it."""
_WITHOUT_WEIGHTS = re.compile("Tokenizer|Processor|FeatureExtractor|Scheduler|Backend|Guidance")
"""Class names of components that have no weights."""
TEMPLATES = "additional_chat_templates/*.jinja"
"""A tokenizer's chat templates besides its first."""
_VOCABULARY = (
    "*config.json", "tokenizer*.json", "*vocab*.json", "*vocab*.txt", "merges.txt", "dict.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template*.json", "*.jinja", TEMPLATES, "*.model",
    "*.spm", "*.tiktoken", "*.codes", "*.tokenizer", "normalizer.json", "emoji.json", "byte_maps.json", "word_*.json",
)  # fmt: skip
"""Files of tokenizers, processors and everything else without weights."""
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".msgpack", ".h5", ".flashpack")
_VARIANT = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:-\d+-of-\d+)?\.(?!safetensors|bin)([\w-]+?)"
    r"(?:-\d+-of-\d+)?\.(?:safetensors|bin)"
)
_WHOLE = ", and model_index.json names that component; copy the whole model folder"
DEPTH = 3
"""How many pipelines may lie inside each other."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """One component of a pipeline. Names are relative to the pipeline's folder, with "/"."""

    name: str
    files: tuple[str, ...]
    """What is read besides weights."""
    weights: tuple[str, ...]
    """Files of tensors: one, or the shards of an index."""
    index: str = ""
    """The index of the shards; empty without one."""
    has_weights: bool
    """Whether the component is a model."""
    fault: str = ""
    """Why it does not load, and what to do; empty if nothing is known against it."""
    others: tuple[str, ...] = ()
    """Files that look like weights and are not read."""


def components(folder: Path) -> dict[str, Component]:
    """What `from_pretrained` loads of the pipeline in `folder`, by name. Empty without a readable index."""
    return {component.name: component for component in _components(folder, "", folder / INDEX)}


def loaded_files(folder: Path) -> list[str]:
    """Names, relative to `folder` and sorted, of the files that `from_pretrained` reads, as far as they are there.

    Raises UnusableModel for one that is a dangling link, or a link out of the folder (other than into the blob store
    of the hub's cache).
    """
    index = _read_json(folder / INDEX)
    names = {INDEX}
    custom = index.get("_class_name")
    if isinstance(custom, list) and custom:
        names |= _present(folder, [f"{custom[0]}.py"])
    for component in components(folder).values():
        names |= {*component.files, *component.weights} | ({component.index} if component.index else set())
    for name in sorted(names):
        check_link(folder, name)
    return sorted(name for name in names if (folder / name).is_file())


def copied_files(folder: Path, *, without: Iterable[str] = (), card: Iterable[str] = ()) -> list[str]:
    """The loaded files and those BESIDE them, except those of the components `without`.

    `card` names files of the root that make up the card, where the copy is to have that too.
    """
    skipped = tuple(f"{name}/" for name in without)
    found = _present(folder, [*BESIDE, *card])
    beside = {name for name in found if (folder / name).is_file() and is_inside(folder, name)}
    return sorted({name for name in loaded_files(folder) if not name.startswith(skipped)} | beside)


def weight_files(folder: Path, component: str) -> list[Path]:
    """The files of tensors of a component; empty if it has none. Raises UnusableModel for a link as `check_link`."""
    found = components(folder).get(component)
    names = found.weights if found else ()
    for name in names:
        check_link(folder, name)
    return [folder / name for name in names]


def check_weights(folder: Path, *, taken: Collection[str] | None = None, configs_suffice: bool = False) -> None:
    """Raise UnusableModel unless every model of the pipeline has weights that `from_pretrained` reads, and no file
    that is read is a dangling link or a link out of the folder.

    `taken` names the components that the pipeline's class takes: the others are not loaded. Where it is not known, a
    component may lack its folder. With `configs_suffice`, components may have no weights, or be absent: the folder is
    read for its configs.
    """
    loaded_files(folder)
    for component in components(folder).values():
        loaded = (folder / component.name).is_dir() if taken is None else component.name.partition("/")[0] in taken
        if not loaded:
            continue
        if component.fault and not (configs_suffice and not component.others and not component.index):
            raise UnusableModel(f"{component.fault} (nothing was started)")


def model_name(folder: Path) -> str:
    """The model's name: `org/name` for a snapshot in the hub's cache (whose folder is a hash), else the folder's."""
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return "/".join(repository.split("--")[1:])
    return folder.name


def check_link(folder: Path, name: str) -> None:
    """Raise UnusableModel if the file is a dangling link, or lies outside of `folder` and the hub's blob store."""
    path = folder / name
    if not path.exists():
        if link := _link_on_the_way(folder, name):
            raise UnusableModel(
                f"{folder / name} is a link to {os.readlink(link)}, which does not exist; copy the model folder again, "
                "with the files that its links point to (cp -rL)"
            )
    elif not is_inside(folder, name):
        raise UnusableModel(
            f"{path} is a link to {os.path.realpath(path)}, outside of the model folder; put the file itself there "
            "(only links into the blob store of the hub's cache are followed)"
        )
    elif not path.is_file():
        raise UnusableModel(f"{path} is no file; copy the model folder again")


def _link_on_the_way(folder: Path, name: str) -> Path | None:
    """The file, or a folder above it, that is a link."""
    paths = [folder / name, *(folder / parent for parent in Path(name).parents if str(parent) != ".")]
    return next((path for path in paths if path.is_symlink()), None)


def is_inside(folder: Path, name: str) -> bool:
    """Whether a file's links lead to a place in `folder`, or in the blob store of the hub's cache that it lies in."""
    root = Path(os.path.realpath(folder))
    allowed = [root]
    if root.parent.name == "snapshots":
        repository = root.parent.parent
        stores = (repository / "blobs", repository.parent / "blobs")  # of the repository, and shared by the whole cache
        allowed += [Path(os.path.realpath(store)) for store in stores]
    return any(Path(os.path.realpath(folder / name)).is_relative_to(place) for place in allowed)


def _components(folder: Path, prefix: str, index: Path) -> Iterator[Component]:
    for name, kind in _read_json(index).items():
        if not is_component(kind) or not isinstance(kind, list) or kind[0] is None:
            continue
        if name.startswith("_") or "/" in name or not is_safe_relative(name):
            continue
        inside = f"{prefix}{name}/"
        if (folder / inside / INDEX).is_file() and prefix.count("/") < DEPTH:
            yield Component(name=prefix + name, files=(f"{inside}{INDEX}",), weights=(), has_weights=False)
            yield from _components(folder, inside, folder / inside / INDEX)
            continue
        if (folder / prefix / name).is_symlink() and not (folder / inside).is_dir():
            yield Component(name=prefix + name, files=(prefix + name,), weights=(), has_weights=False)
            continue
        # diffusers looks into the root for a component that has no folder of its own.
        at = inside if (folder / inside).is_dir() else prefix
        yield _component(folder, at, prefix + name, library=kind[0], kind=kind[1])


def _component(folder: Path, at: str, name: str, *, library: str, kind: str) -> Component:
    """The component of that class whose files lie at `at`."""
    here = folder / at
    code = _present(here, ["*.py"]) if (here / f"{library}.py").is_file() else set[str]()
    if "Scheduler" in kind:
        side = _present(here, ["scheduler_config.json"])
    elif _WITHOUT_WEIGHTS.search(kind) or ("config.json" not in _listed(here) and _present(here, ["*config.json"])):
        side = _present(here, _VOCABULARY)
    else:
        config = _read_json(here / "config.json")
        ours = library == "diffusers" or (library != "transformers" and "_class_name" in config)
        side = _present(here, ["config.json", *(() if ours else ("generation_config.json", *_ADAPTER))])
        explicit = config.get("transformers_weights")
        places = _DIFFUSERS if ours else (explicit,) if isinstance(explicit, str) else _TRANSFORMERS
        found, index, fault = _weights(here, places)
        beside = _listed(here) - {*found, *side} if (folder / name).is_dir() else set[str]()
        others = tuple(sorted(n for n in beside if n.endswith(_WEIGHT_SUFFIXES)))
        return Component(
            name=name,
            files=tuple(sorted(at + file for file in side | code)),
            weights=tuple(at + file for file in found),
            index=at + index if index else "",
            has_weights=True,
            fault=fault or ("" if found and side else _absent(folder, name, here, places, others)),
            others=others,
        )
    return Component(
        name=name,
        files=tuple(sorted(at + file for file in side | code)),
        weights=(),
        has_weights=False,
        fault="" if side or (at and _listed(here)) else f"{folder / name} is missing or empty{_WHOLE}",
    )


def _weights(here: Path, places: Iterable[str]) -> tuple[list[str], str, str]:
    """(files of tensors, their index or "", what is wrong with them or "") of the first of `places` that is there."""
    there = _listed(here)
    place = next((place for place in places if place in there), "")
    if not place.endswith(".index.json"):
        return [place] if place else [], "", ""
    index = _read_json(here / place)
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards or "metadata" not in index:
        return [], place, f"{here / place} is no index of weights; copy the model folder again"
    names = sorted({str(name) for name in shards.values()})
    if strange := [name for name in names if os.path.basename(name) != name or not name]:
        return (
            [],
            place,
            f"{here / place} names {strange[0]!r}, which is no file beside it; copy the model folder again",
        )
    if gone := [name for name in names if name not in there]:
        return [], place, f"{here / place} names {gone[0]}, which is missing; copy the model folder again"
    return names, place, ""


def _absent(folder: Path, name: str, here: Path, places: Iterable[str], others: Iterable[str]) -> str:
    """Why a model without a config, or without any of `places`, does not load."""
    if not (folder / name).is_dir() and "config.json" not in _listed(here):
        return f"{folder / name} is missing{_WHOLE}"
    if "config.json" not in _listed(here):
        return f"{here} has no config.json{_WHOLE}"
    variants = sorted({match[1] for name in others if (match := _VARIANT.fullmatch(name))})
    if variants:
        return (
            f"{here} has weights of the variant {' and '.join(variants)} only, and weights without a variant are read; "
            f"set model.variant={variants[0]}, or write them so: "
            f"DiffusionPipeline.from_pretrained({str(folder)!r}, variant={variants[0]!r})"
            ".save_pretrained(NEW_FOLDER)"
        )
    seen = f"; it has {', '.join(others)}" if others else ""
    expected = ", ".join(place for place in places if not place.endswith(".index.json"))
    return f"{here} has no weights that from_pretrained reads ({expected}, or shards with their index){seen}; " + (
        "save the pipeline with save_pretrained" if others else "copy the whole model folder"
    )


def _present(here: Path, patterns: Iterable[str]) -> set[str]:
    """Files in `here` (dangling links too) whose names match; a pattern may name a folder first."""
    found = set[str]()
    for pattern in patterns:
        below, _, last = pattern.rpartition("/")
        names = _listed(here / below)
        found |= {f"{below}/{name}" if below else name for name in names if fnmatch(name, last)}
    return found


def _listed(here: Path) -> set[str]:
    """Names of the files in a folder, of links to nowhere too; not those of folders, nor hidden ones."""
    try:
        with os.scandir(here) as entries:
            return {entry.name for entry in entries if not entry.name.startswith(".") and _is_file(entry)}
    except OSError:
        return set()


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file() or (entry.is_symlink() and not entry.is_dir())
    except OSError:  # a loop of links, for one
        return True


def _read_json(path: Path) -> Mapping[str, object]:
    """The object in a JSON file; empty if there is none. What reads the file for its contents says what is wrong."""
    try:
        return read_json_object(path) if path.is_file() else {}
    except (OSError, ValueError):
        return {}
