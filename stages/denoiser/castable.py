"""Which weights of a pipeline may be cast before it is loaded, so that the loaded model is the same to the bit.

diffusers loads every number in the dtype that is asked for, but for modules that a class keeps in float32. transformers
asks each parameter of the model, so of its models only float32 is sure to be what every number becomes. Components
that are quantized, or of other libraries, are loaded as they are stored.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from adatsq_pipe.storage.checkpoint import find_pipeline
from adatsq_pipe.storage.model_index import component_config, is_component


def kept_in_float32(folder: Path, dtype: str) -> dict[str, tuple[str, ...]]:
    """By component that may be cast to `dtype`: parts of names of tensors that are to stay as they are stored.

    Raises StorageError if the folder holds no pipeline.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name, kind in find_pipeline(folder).items():
        if not is_component(kind) or kind[0] is None or not (folder / name / "config.json").is_file():
            continue
        if "quantization_config" in component_config(folder, name):
            continue
        if kind[0] == "diffusers" and (model := getattr(import_module("diffusers"), kind[1], None)) is not None:
            own = getattr(model, "_keep_in_fp32_modules", None) or ()
            found[name] = () if dtype == "float32" else (own,) if isinstance(own, str) else tuple(own)
        elif kind[0] == "transformers" and dtype == "float32":
            found[name] = ()
    return found
