"""Model folders: recognizing a diffusers pipeline, reading its weights, writing a copy with other weights."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from adatsq_pipe.storage.errors import NoTransformer, StorageError
from adatsq_pipe.storage.files import write_text
from adatsq_pipe.storage.model_index import component_config, is_component, read_index

if TYPE_CHECKING:
    from torch import Tensor

ORIGINAL_ONLY = ("training.json",)
"""Files about the original's training. They are not copied, as they are not true of a quantized copy."""
ORIGINAL_SUFFIXES = (".png", ".csv")
"""Pictures and training curves beside the original, not copied either."""

_DEFAULT_WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors")
"""Weight files that diffusers loads by default, without a variant."""
_SHARDS = "diffusion_pytorch_model*.safetensors"


def find_pipeline(folder: Path) -> dict[str, Any]:
    """The folder's `model_index.json`: class name, and [library, class] by component.

    Raises StorageError if the folder is no local pipeline, NoTransformer if the pipeline has no transformer.
    """
    if not folder.is_dir():
        raise StorageError(f"{folder} is not a folder; --model takes a local diffusers pipeline folder")
    try:
        index = read_index(folder)
    except FileNotFoundError:
        raise StorageError(f"{folder} has no model_index.json, so it is no diffusers pipeline folder") from None
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
) -> None:
    """Copy the pipeline at `source` to the empty folder `target`, with `tensors` as its transformer's weights.

    `quantization_config` goes into the transformer's config (None removes the one it had); `card` becomes README.md.
    Equal tensors give equal bytes.
    """
    for path in sorted(source.iterdir()):
        if path.name.startswith(".") or path.name in ("transformer", "README.md") or path.name in ORIGINAL_ONLY:
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name, ignore=shutil.ignore_patterns(".*"))
        elif path.suffix not in ORIGINAL_SUFFIXES:
            shutil.copyfile(path, target / path.name)
    write_component(source, target, part="transformer", tensors=tensors, quantization_config=quantization_config)
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
    shutil.rmtree(target / part, ignore_errors=True)
    (target / part).mkdir()
    write_text(target / part / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(
        {name: tensors[name].contiguous() for name in sorted(tensors)},
        target / part / "diffusion_pytorch_model.safetensors",
        metadata={"format": "pt"},
    )


def read_transformer(source: Path, part: str = "transformer") -> dict[str, Tensor]:
    """Every tensor of the pipeline's denoiser `part`, in its stored dtype, from one safetensors file or its shards.

    Raises StorageError if there is none, or one does not load.
    """
    from safetensors.torch import load_file  # imports torch, which `status` does without

    tensors: dict[str, Tensor] = {}
    for path in sorted((source / part).glob(_SHARDS)):
        try:
            tensors.update(load_file(path))
        except (SafetensorError, OSError) as error:
            raise StorageError(f"{path} does not load ({error}); copy the model folder again") from None
    if not tensors:
        raise StorageError(f"{source / part} has no safetensors weights; save the pipeline with safetensors")
    return tensors


def stored_sizes(source: Path) -> dict[str, dict[str, int]]:
    """Element count of every tensor, by component and name, of the components that the pipeline loads.

    Reads the headers of safetensors files only, and skips variants (`x.fp16.safetensors`) as loading does.
    Raises StorageError for a damaged file.
    """
    loaded = {name for name, kind in find_pipeline(source).items() if is_component(kind) and kind[0] is not None}
    sizes: dict[str, dict[str, int]] = {}
    for path in sorted(source.glob("*/*.safetensors")):
        if path.parent.name not in loaded or not _DEFAULT_WEIGHTS.fullmatch(path.name):
            continue
        component = sizes.setdefault(path.parent.name, {})
        with _header(path) as file:
            component |= {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return sizes


def weight_shapes(source: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every `.weight` tensor of the transformer, by the name of its module, from the headers alone.

    Raises StorageError for a damaged file.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted((source / "transformer").glob(_SHARDS)):
        with _header(path) as file:
            names = [name for name in file.keys() if name.endswith(".weight")]  # noqa: SIM118
            shapes |= {name.removesuffix(".weight"): tuple(file.get_slice(name).get_shape()) for name in names}
    return shapes


@contextmanager
def _header(path: Path) -> Iterator[safe_open]:
    """A safetensors file, opened without reading its tensors. Raises StorageError if it is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise StorageError(f"{path} is not readable as safetensors: {error}") from None
