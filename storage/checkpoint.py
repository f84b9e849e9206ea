"""Model folders: what makes one a diffusers pipeline, and writing one whose transformer is replaced."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adatsq_pipe.storage.errors import NoTransformer, StorageError
from adatsq_pipe.storage.files import write_text

OF_THE_ORIGINAL = ("training.json",)
"""Files beside a model that speak of its own making, as do pictures and curves: not true of a quantized copy."""


_PLAIN = re.compile(r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors")
"""Files of weights that are loaded when no variant is asked for."""


def find_pipeline(folder: Path) -> dict[str, Any]:
    """The folder's `model_index.json`, checked to be a local pipeline with a transformer.

    Raises StorageError, NoTransformer if it is a pipeline of another kind.
    """
    index = folder / "model_index.json"
    if not folder.is_dir():
        raise StorageError(f"{folder} is not a folder; --model takes a local diffusers pipeline folder")
    try:
        named = json.loads(index.read_text())
    except FileNotFoundError:
        raise StorageError(f"{folder} has no model_index.json, so it is no diffusers pipeline folder") from None
    except ValueError as error:
        raise StorageError(f"{index} is not JSON ({error}); restore the file") from None
    if not named.get("transformer") or not (folder / "transformer").is_dir():
        parts = ", ".join(sorted(k for k, v in named.items() if isinstance(v, list))) or "none"
        raise NoTransformer(f"{folder} has no transformer to quantize (its parts: {parts})")
    return dict(named)


def write_pipeline(
    source: Path, target: Path, *, tensors: Mapping[str, Any], quantization_config: Mapping[str, Any] | None, card: str
) -> None:
    """Copy the pipeline at `source` to the empty `target`, its transformer's weights replaced by `tensors`.

    The transformer's config gains `quantization_config` (None: loses the one it had); `card` becomes the folder's
    README.md. Tensors are written in name order, so equal tensors give equal bytes.
    """
    for path in sorted(source.iterdir()):
        if path.name.startswith(".") or path.name in ("transformer", "README.md") or path.name in OF_THE_ORIGINAL:
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name, ignore=shutil.ignore_patterns(".*"))
        elif path.suffix not in (".png", ".csv"):
            shutil.copyfile(path, target / path.name)
    write_component(source, target, part="transformer", tensors=tensors, quantization_config=quantization_config)
    write_text(target / "README.md", card)


def write_component(
    source: Path,
    target: Path,
    *,
    part: str,
    tensors: Mapping[str, Any],
    quantization_config: Mapping[str, Any] | None,
) -> None:
    """Write one denoiser of the pipeline at `source`, its weights replaced, to the folder `part` of `target`."""
    from safetensors.torch import save_file

    config = json.loads((source / part / "config.json").read_text())
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


def read_transformer(source: Path, part: str = "transformer") -> dict[str, Any]:
    """Every tensor of the pipeline's transformer, or of another of its denoisers, as stored (one safetensors file or
    shards). Raises StorageError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for path in sorted((source / part).glob("diffusion_pytorch_model*.safetensors")):
        try:
            found.update(load_file(path))
        except (SafetensorError, OSError) as error:
            raise StorageError(f"{path} does not load ({error}); copy the model folder again") from None
    if not found:
        raise StorageError(f"{source / part} has no safetensors weights; save the pipeline with safetensors")
    return found


def stored_sizes(source: Path) -> dict[str, dict[str, int]]:
    """Numbers in every tensor of every part that the pipeline opens, by part, from the headers of safetensors alone.

    Variants (`x.fp16.safetensors`) are left out, as when it is opened. Raises StorageError for a damaged file.
    """
    from safetensors import SafetensorError, safe_open

    opened = {name for name, kind in find_pipeline(source).items() if isinstance(kind, list) and kind[0] is not None}
    found: dict[str, dict[str, int]] = {}
    for path in sorted(source.glob("*/*.safetensors")):
        if path.parent.name not in opened or not _PLAIN.fullmatch(path.name):
            continue
        sizes = found.setdefault(path.parent.name, {})
        try:
            with safe_open(path, framework="numpy") as file:
                sizes |= {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise StorageError(f"{path} is not readable as safetensors: {error}") from None
    return found


def weight_shapes(source: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the transformer's `.weight` tensors by the name of their module, from the headers alone."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, tuple[int, ...]] = {}
    for path in sorted((source / "transformer").glob("diffusion_pytorch_model*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                names = [name for name in file.keys() if name.endswith(".weight")]  # noqa: SIM118
                found |= {name.removesuffix(".weight"): tuple(file.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError) as error:
            raise StorageError(f"{path} is not readable as safetensors: {error}") from None
    return found
