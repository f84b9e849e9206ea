"""Model folders: recognizing a diffusers pipeline, reading its weights, writing a copy with other weights."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adatsq_pipe.storage.errors import NoTransformer, UnusableModel
from adatsq_pipe.storage.files import copy_files, write_text
from adatsq_pipe.storage.model_files import check_link, components, copied_files, weight_files
from adatsq_pipe.storage.model_index import INDEX, component_config, is_component, read_index
from adatsq_pipe.storage.weights import LazyTensor, Weights, lazy_tensors, load_bin, open_safetensors, write_weights

if TYPE_CHECKING:
    import numpy.typing as npt

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
"""Names of floating-point types, by what files of safetensors call them."""


def find_pipeline(folder: Path) -> dict[str, Any]:
    """The folder's `model_index.json`: class name, and [library, class] by component.

    Raises UnusableModel if the folder is no local pipeline, NoTransformer if the pipeline has no transformer.
    """
    if not folder.is_dir():
        raise UnusableModel(f"{folder} is not a folder; --model takes a pipeline folder, or org/name of the hub")
    check_link(folder, INDEX)
    try:
        index = read_index(folder)
    except FileNotFoundError:
        inside = sorted(path.parent for path in folder.glob(f"snapshots/*/{INDEX}"))
        hint = f"; the hub's cache has it in {inside[-1]}" if inside else ""
        raise UnusableModel(f"{folder} has no {INDEX}, so it is no diffusers pipeline folder{hint}") from None
    components = [name for name, value in index.items() if is_component(value)]
    if not index.get("transformer") or not (folder / "transformer").is_dir():
        names = ", ".join(sorted(components)) or "none"
        raise NoTransformer(f"{folder} has no transformer to quantize (its components: {names})")
    return index


def write_pipeline(
    source: Path,
    target: Path,
    *,
    tensors: Weights,
    quantization_config: Mapping[str, object] | None,
    card: str,
    part: str = "transformer",
    others: Iterable[str] = (),
) -> None:
    """Copy the pipeline at `source` to the empty folder `target`, with `tensors` as the weights of its denoiser `part`.

    Only files that `from_pretrained` reads are copied, and those beside them that `model_files` names.
    `quantization_config` goes into the denoiser's config (None removes the one it had); `card` becomes README.md.
    `others` are denoisers that `write_component` writes afterwards. Equal tensors give equal bytes.
    One tensor is in memory at a time (see `weights`).
    """
    copy_files(source, target, copied_files(source, without=[part, *others]))
    write_component(source, target, part=part, tensors=tensors, quantization_config=quantization_config)
    write_text(target / "README.md", card)


def write_component(
    source: Path,
    target: Path,
    *,
    part: str,
    tensors: Weights,
    quantization_config: Mapping[str, object] | None,
) -> None:
    """Write the denoiser `part` of the pipeline at `source` to `target`, with `tensors` as its weights."""
    config = component_config(source, part)
    config.pop("quantization_config", None)
    if quantization_config is not None:
        config["quantization_config"] = dict(quantization_config)
    if (target / part).exists():
        shutil.rmtree(target / part)
    (target / part).mkdir()
    write_text(target / part / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_weights(target / part, tensors)


def write_shards(
    source: Path,
    target: Path,
    *,
    part: str,
    shards: Sequence[tuple[Path, Mapping[str, int]]],
    quantization_config: Mapping[str, object],
    place: Callable[[Path, Path], object],
) -> None:
    """Write the transformers model `part` of the pipeline at `source` to `target`, with files of weights that are
    there: `shards` has each file and the bytes of its tensors by name. `place(file, to)` brings a file to its place.

    What the model has besides weights and its config is copied.
    """
    config = component_config(source, part)
    config.pop("transformers_weights", None)  # a file name of the source's
    config["quantization_config"] = dict(quantization_config)
    copy_files(source, target, [n for n in components(source)[part].files if n != f"{part}/config.json"])
    (target / part).mkdir(parents=True, exist_ok=True)
    write_text(target / part / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    weight_map = dict[str, str]()
    for number, (file, names) in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        place(file, target / part / name)
        weight_map |= dict.fromkeys(names, name)
    if len(shards) > 1:
        total = sum(size for _, names in shards for size in names.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        write_text(target / part / "model.safetensors.index.json", text)


def stored_tensors(source: Path, part: str = "transformer") -> dict[str, LazyTensor]:
    """Every tensor of the pipeline's denoiser `part`, in its stored dtype, from the files that `from_pretrained` reads.

    None is read before its `load`. Raises StorageError if there are none, or a file does not load.
    """
    tensors: dict[str, LazyTensor] = {}
    for path in weight_files(source, part):
        tensors.update(lazy_tensors(path))
    if not tensors:
        raise UnusableModel(components(source)[part].fault if part in components(source) else f"{source} has no {part}")
    return tensors


def tensor_sizes(source: Path, part: str) -> dict[str, int]:
    """Element count of every tensor of a component, by name; reads no tensor. StorageError for a damaged file."""
    return {name: math.prod(shape) for name, shape in _shapes(weight_files(source, part)).items()}


def tensor_names(source: Path, part: str) -> list[str]:
    """Names of the tensors in the weights of a component, sorted. Raises StorageError for a damaged file."""
    return sorted(_shapes(weight_files(source, part)))


def read_ending(source: Path, part: str, ending: str) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a component whose names end so, from its safetensors files; no other tensor is read.

    Raises StorageError for a damaged file.
    """
    found: dict[str, npt.NDArray[Any]] = {}
    for path in weight_files(source, part):
        with open_safetensors(path) as file:
            found |= {name: file.get_tensor(name) for name in file.keys() if name.endswith(ending)}  # noqa: SIM118
    return found


def stored_sizes(source: Path) -> dict[str, dict[str, int]]:
    """Element count of every tensor, by component and name, of the components that the pipeline loads.

    Reads no tensor. Raises StorageError for a damaged file, or a folder that is no pipeline.
    """
    find_pipeline(source)
    files = {part: weight_files(source, part) for part in components(source)}
    shapes = {part: _shapes(paths) for part, paths in sorted(files.items()) if paths}
    return {part: {name: math.prod(shape) for name, shape in of.items()} for part, of in shapes.items()}


def stored_dtype(source: Path, part: str = "transformer") -> str:
    """Name of the dtype that most numbers of a component's weights are stored in, e.g. "bfloat16"; "" without weights.

    Reads no tensor. Raises StorageError for a damaged file.
    """
    counts: Counter[str] = Counter()
    for path in weight_files(source, part):
        if path.suffix == ".bin":
            for tensor in load_bin(path, "meta").values():
                counts[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
            continue
        with open_safetensors(path) as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                stored = tensor.get_dtype()
                counts[_DTYPES.get(stored, stored.lower())] += math.prod(tensor.get_shape())
    return max(counts, key=lambda name: counts[name], default="")


def weight_shapes(source: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every `.weight` tensor of the transformer, by the name of its module. Reads no tensor.

    Raises StorageError for a damaged file.
    """
    shapes = _shapes(weight_files(source, "transformer"))
    return {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight")}


def _shapes(paths: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in files of weights."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        if path.suffix == ".bin":
            shapes |= {name: tuple(tensor.shape) for name, tensor in load_bin(path, "meta").items()}
            continue
        with open_safetensors(path) as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes
