"""Model folders: recognizing a diffusers pipeline, reading its weights, writing a copy with other weights."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

from safetensors import SafetensorError, safe_open

from adatsq_pipe.storage.errors import NoTransformer, StorageError, UnusableModel
from adatsq_pipe.storage.files import copy_files, write_text, write_with
from adatsq_pipe.storage.model_files import check_link, components, copied_files, weight_files
from adatsq_pipe.storage.model_index import INDEX, component_config, is_component, read_index

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor


def find_pipeline(folder: Path) -> dict[str, Any]:
    """The folder's `model_index.json`: class name, and [library, class] by component.

    Raises StorageError if the folder is no local pipeline, NoTransformer if the pipeline has no transformer.
    """
    if not folder.is_dir():
        raise StorageError(f"{folder} is not a folder; --model takes a local diffusers pipeline folder")
    check_link(folder, INDEX)
    try:
        index = read_index(folder)
    except FileNotFoundError:
        inside = sorted(path.parent for path in folder.glob(f"snapshots/*/{INDEX}"))
        hint = f"; the hub's cache has it in {inside[-1]}" if inside else ""
        raise StorageError(f"{folder} has no {INDEX}, so it is no diffusers pipeline folder{hint}") from None
    components = [name for name, value in index.items() if is_component(value)]
    if not index.get("transformer") or not (folder / "transformer").is_dir():
        names = ", ".join(sorted(components)) or "none"
        raise NoTransformer(f"{folder} has no transformer to quantize (its components: {names})")
    return index


def write_pipeline(
    source: Path,
    target: Path,
    *,
    tensors: Mapping[str, Tensor],
    quantization_config: Mapping[str, object] | None,
    card: str,
    part: str = "transformer",
    others: Iterable[str] = (),
) -> None:
    """Copy the pipeline at `source` to the empty folder `target`, with `tensors` as the weights of its denoiser `part`.

    Only files that `from_pretrained` reads are copied, and those beside them that `model_files` names.
    `quantization_config` goes into the denoiser's config (None removes the one it had); `card` becomes README.md.
    `others` are denoisers that `write_component` writes afterwards. Equal tensors give equal bytes.
    """
    copy_files(source, target, copied_files(source, without=[part, *others]))
    write_component(source, target, part=part, tensors=tensors, quantization_config=quantization_config)
    write_text(target / "README.md", card)


def write_component(
    source: Path,
    target: Path,
    *,
    part: str,
    tensors: Mapping[str, Tensor],
    quantization_config: Mapping[str, object] | None,
) -> None:
    """Write the denoiser `part` of the pipeline at `source` to `target`, with `tensors` as its weights."""
    from safetensors.torch import save_file  # imports torch, which `status` does without

    config = component_config(source, part)
    config.pop("quantization_config", None)
    if quantization_config is not None:
        config["quantization_config"] = dict(quantization_config)
    if (target / part).exists():
        shutil.rmtree(target / part)
    (target / part).mkdir()
    write_text(target / part / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    stored = {name: tensors[name].contiguous() for name in sorted(tensors)}
    write_with(
        target / part / "diffusion_pytorch_model.safetensors",
        lambda path: save_file(stored, path, metadata={"format": "pt"}),
    )


def read_transformer(source: Path, part: str = "transformer") -> dict[str, Tensor]:
    """Every tensor of the pipeline's denoiser `part`, in its stored dtype, from the files that `from_pretrained` reads.

    Raises StorageError if there are none, or one does not load.
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_files(source, part):
        tensors.update(_load(path))
    if not tensors:
        raise UnusableModel(components(source)[part].fault if part in components(source) else f"{source} has no {part}")
    return tensors


def tensor_names(source: Path, part: str) -> list[str]:
    """Names of the tensors in the weights of a component, sorted. Raises StorageError for a damaged file."""
    return sorted(_shapes(weight_files(source, part)))


def read_ending(source: Path, part: str, ending: str) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a component whose names end so, from its safetensors files; no other tensor is read.

    Raises StorageError for a damaged file.
    """
    found: dict[str, npt.NDArray[Any]] = {}
    for path in weight_files(source, part):
        with _header(path) as file:
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
            shapes |= {name: tuple(tensor.shape) for name, tensor in _load_bin(path, "meta").items()}
            continue
        with _header(path) as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors of one file of weights (CPU). Raises StorageError if it does not load."""
    from safetensors.torch import load_file  # imports torch, which `status` does without

    if path.suffix == ".bin":
        return _load_bin(path, "cpu")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise StorageError(f"{path} does not load ({error}); copy the model folder again") from None
    return tensors


def _load_bin(path: Path, device: str) -> dict[str, Tensor]:
    """The tensors of a file in torch's own format, as diffusers loads it: tensors alone, no code is run."""
    import torch  # `status` does without

    try:
        stored = torch.load(path, map_location=device, weights_only=True, mmap=is_zipfile(path))
    except Exception as error:  # whatever zip, pickle and torch raise for a damaged file
        why = str(error).strip().partition("\n")[0]
        raise StorageError(f"{path} does not load ({why}); copy the model folder again") from None
    return {name: value for name, value in stored.items() if isinstance(value, torch.Tensor)}


@contextmanager
def _header(path: Path) -> Iterator[safe_open]:
    """A safetensors file, opened without reading its tensors. Raises StorageError if it is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise StorageError(f"{path} is not readable as safetensors: {error}") from None
