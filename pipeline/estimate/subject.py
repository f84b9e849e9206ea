"""Subject: the model that a plan is of, read from its configs. No weight is loaded.

MODEL is a pipeline folder, with weights or with configs alone, or the config of a transformer. Sizes of components come
from the headers of their weights, or from the model that their config describes, made without memory for weights.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.stages.architecture import support
from adatsq_pipe.stages.denoiser.inspection import on_meta
from adatsq_pipe.storage.checkpoint import find_pipeline, stored_sizes
from adatsq_pipe.storage.files import read_json_object
from adatsq_pipe.storage.model_files import copied_files, weight_files
from adatsq_pipe.storage.model_index import INDEX, is_component

PIPELINES = {
    "FluxTransformer2DModel": "FluxPipeline", "WanTransformer3DModel": "WanPipeline",
    "QwenImageTransformer2DModel": "QwenImagePipeline", "ZImageTransformer2DModel": "ZImagePipeline",
    "DiTTransformer2DModel": "DiTPipeline", "SD3Transformer2DModel": "StableDiffusion3Pipeline",
    "PixArtTransformer2DModel": "PixArtSigmaPipeline", "SanaTransformer2DModel": "SanaPipeline",
    "HunyuanVideoTransformer3DModel": "HunyuanVideoPipeline", "LTXVideoTransformer3DModel": "LTXPipeline",
    "CogVideoXTransformer3DModel": "CogVideoXPipeline", "Lumina2Transformer2DModel": "Lumina2Pipeline",
    "ChromaTransformer2DModel": "ChromaPipeline",
}  # fmt: skip
"""The pipeline that a transformer alone is taken to be part of."""
DENOISER = "transformer"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model by its configs."""

    path: Path
    pipeline: str
    """Name of the pipeline's class; empty if it is not known."""
    denoisers: Mapping[str, Mapping[str, Any]]
    """Config of every denoiser, by component."""
    vae: Mapping[str, Any]
    """Config of the autoencoder; empty if the model has none, or none that is known."""
    scheduler: Mapping[str, Any]
    index: Mapping[str, Any]
    """The model index; empty for a transformer alone."""
    sizes: Mapping[str, Mapping[str, int]]
    """Numbers by tensor of every component besides the denoisers, as far as they are known."""
    stored: Mapping[str, int]
    """Bytes of the weights of every denoiser that are there."""
    copied: int
    """Bytes of what an assembled folder copies besides the denoisers' weights."""
    assumed: Sequence[str]
    """What had to be taken for granted, in sentences."""

    @property
    def parameters(self) -> dict[str, int]:
        """Numbers in the weights of every component besides the denoisers."""
        return {part: sum(of.values()) for part, of in self.sizes.items()}

    def default(self, name: str) -> Any:
        """The default of an argument of the pipeline's call; None without one."""
        made = getattr(diffusers, self.pipeline, None)
        parameter = inspect.signature(made.__call__).parameters.get(name) if made is not None else None
        return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default

    @property
    def source(self) -> str:
        """The source of the pipeline's class, "" if it is not known."""
        made = getattr(diffusers, self.pipeline, None)
        return inspect.getsource(made) if made is not None else ""


def read_subject(path: Path, *, dtype_size: int) -> Subject:
    """The subject in a folder or config file. Weights that are not there count `dtype_size` bytes a number.

    Raises ConfigError for a config that is no transformer's, NotTaken or StorageError for a folder that cannot be run.
    """
    config = path if path.is_file() else path / "config.json"
    if config.is_file() and not (path / INDEX).exists():
        return _of_config(config)
    index = find_pipeline(path)
    parts, name = support.denoisers(index), str(index["_class_name"])
    assumed: list[str] = []
    stored = stored_sizes(path)
    others = {n: v for n, v in index.items() if is_component(v) and v != [None, None] and n not in parts}
    taken, sizes = support.components_taken(name), dict[str, Mapping[str, int]]()
    for part, (library, kind) in others.items():
        if taken is not None and part not in taken:
            continue
        if part in stored:
            sizes[part] = stored[part]
        elif (path / part / "config.json").is_file() and (made := _numbers(library, kind, path / part)) is not None:
            sizes[part] = made
        elif _is_model(kind):
            assumed.append(f"{part} ({kind}) has neither weights nor a usable config here: its bytes are left out")
    return Subject(
        path=path,
        pipeline=name,
        denoisers={part: _config(path / part / "config.json") for part in parts},
        vae=_config(path / "vae" / "config.json") if (path / "vae" / "config.json").is_file() else {},
        scheduler=_scheduler(path),
        index=index,
        sizes=sizes,
        stored={part: sum(f.stat().st_size for f in weight_files(path, part)) for part in parts if part in stored},
        copied=_copied(path, parts, sizes, dtype_size),
        assumed=assumed,
    )


def _of_config(path: Path) -> Subject:
    """A transformer alone."""
    config = _config(path)
    kind = str(config.get("_class_name", ""))
    if not isinstance(getattr(diffusers, kind, None), type):
        said = f"its _class_name {kind!r} is no class" if kind else "it has no _class_name, the name of a class"
        raise ConfigError(
            f"{path} is not a transformer's config: {said} of the installed diffusers {diffusers.__version__}"
        )
    name = PIPELINES.get(kind, "")
    assumed = [
        "there is only a transformer: its autoencoder and text encoders are in no figure"
        + (f"; its calls are those of a {name}" if name else "")
    ]
    return Subject(
        path=path, pipeline=name, denoisers={DENOISER: config}, vae={}, scheduler={}, index={}, sizes={},
        stored={}, copied=0, assumed=assumed,
    )  # fmt: skip


def _config(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except ValueError as error:
        raise ConfigError(f"{path} is not a model's config ({error}); name its config.json") from None


def _scheduler(path: Path) -> dict[str, Any]:
    file = path / "scheduler" / "scheduler_config.json"
    return _config(file) if file.is_file() else {}


def _is_model(kind: str) -> bool:
    return not re.search("Tokenizer|Processor|FeatureExtractor|Scheduler|Backend|Guidance", kind)


def _numbers(library: str, kind: str, folder: Path) -> dict[str, int] | None:
    """Numbers by tensor of a component that has a config alone; None if no model can be made of it."""
    if library == "transformers":
        made = getattr(transformers, kind, None)
        if made is None or not hasattr(made, "config_class"):
            return None
        try:
            config = made.config_class.from_pretrained(folder)
            with torch.device("meta"):
                model = made(config)
        except Exception:  # a config of another version: whatever its class raises
            return None
    else:
        try:
            model = on_meta({"_class_name": kind, **_config(folder / "config.json")}, folder)
        except Exception:  # as above
            return None
    return {tensor: parameter.numel() for tensor, parameter in model.named_parameters()}


def _copied(path: Path, parts: Sequence[str], sizes: Mapping[str, Mapping[str, int]], dtype_size: int) -> int:
    """Bytes of the files that are copied, and of weights that would be if they were there."""
    names = copied_files(path, without=parts)
    there = sum((path / name).stat().st_size for name in names)
    return there + sum(dtype_size * sum(of.values()) for part, of in sizes.items() if not weight_files(path, part))
