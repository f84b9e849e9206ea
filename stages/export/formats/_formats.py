"""Which formats there are, and what they share: opening the quantized transformer, writing the folder whole."""

from __future__ import annotations

import importlib
import pkgutil
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import adatsq_pipe.stages.export.formats as package
from adatsq_pipe.stages.architecture.support import denoisers
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.text.encoders import encoders_of
from adatsq_pipe.storage.checkpoint import find_pipeline
from adatsq_pipe.storage.files import UNFINISHED, copy_files
from adatsq_pipe.storage.model_files import copied_files
from adatsq_pipe.storage.model_index import component_config

if TYPE_CHECKING:
    from torch import nn

Export = Callable[[Path, Path], str]
"""Writes the quantized pipeline folder `source` to the empty folder `out`; returns a line about it."""


CARD = ("README.md", "policy.png", "sheet.png")
"""The files of a quantized folder's card."""
OF_SEVERAL = ("dequantized", "self-contained")
"""Formats of pipelines with several denoisers; the others have one place for weights or for a policy."""


def formats() -> list[str]:
    """Names of the formats there are."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(package.__path__) if m.name[0] != "_")


def _writer(name: str) -> Export:
    module = importlib.import_module(f"adatsq_pipe.stages.export.formats.{name.replace('-', '_')}")
    written: Export = module.export
    return written


def export(name: str, source: Path, out: Path) -> str:
    """Write `source` in the format `name` to `out`, which appears only when it is whole. Raises StageError."""
    if len(parts := denoisers(find_pipeline(source))) > 1 and name not in OF_SEVERAL:
        raise StageError(
            f"{source} has several denoisers ({', '.join(parts)}), and {name} is for pipelines with one; there "
            f"{'are' if len(OF_SEVERAL) > 1 else 'is'} --format {' and '.join(OF_SEVERAL)}"
        )
    for part in parts:
        if config_of(source, part) is None:
            raise StageError(f"{source} is not quantized by adatsq-pipe: its {part} has no such quantization_config")
    if out.exists():
        raise StageError(f"{out} is there already; remove it, or name another folder with --out")
    unfinished = out.with_name(out.name + UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        message = _writer(name)(source, unfinished)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return message


def copy_folder(source: Path, out: Path) -> None:
    """Copy the quantized pipeline folder: what is loaded, the licence and the card."""
    copy_files(source, out, copied_files(source, card=CARD))


def config_of(folder: Path, part: str = "transformer") -> dict[str, object] | None:
    """The quantization_config of a denoiser in the folder, None if it has none of ours."""
    config = component_config(folder, part).get("quantization_config")
    return config if isinstance(config, dict) and config.get("quant_method") == "adatsq" else None


def packed_encoders(folder: Path) -> list[str]:
    """The text encoders in the folder whose weights are codes."""
    found = [encoder.name for encoder in encoders_of(folder)]
    configs = {name: component_config(folder, name).get("quantization_config") for name in found}
    return [n for n, config in configs.items() if isinstance(config, dict) and config.get("quant_method") == "adatsq"]


def write_plain_encoders(source: Path, out: Path, names: Sequence[str]) -> str:
    """Write these text encoders to `out` with plain bfloat16 weights, and return a sentence about it, "" without any.

    Raises StageError if one does not load.
    """
    # The command line lists the formats without torch and transformers.
    import torch
    import transformers

    import adatsq_pipe.stages.runtime  # noqa: F401  (registers the quantizer)

    index = find_pipeline(source)
    transformers.utils.logging.disable_progress_bar()
    for name in names:
        try:
            model = getattr(transformers, index[name][1]).from_pretrained(source / name, dtype=torch.bfloat16)
            model.dequantize()
        except Exception as error:
            raise StageError(f"{source / name} does not load: {error}") from error
        model.save_pretrained(out / name)
    return f"; {', '.join(names)} in plain bfloat16 too, with the weights of its codes" if names else ""


def transformer_of(folder: Path, part: str = "transformer") -> nn.Module:
    """The quantized transformer, or another denoiser, in bfloat16. Raises StageError if it does not load."""
    # The command line lists the formats without torch and diffusers.
    import diffusers
    import torch  # only an export needs it

    import adatsq_pipe.stages.runtime  # noqa: F401  (registers the quantizer)

    name = component_config(folder, part).get("_class_name", "")
    diffusers.utils.logging.disable_progress_bar()
    try:
        opened: nn.Module = getattr(diffusers, name).from_pretrained(folder / part, dtype=torch.bfloat16)
    except Exception as error:
        raise StageError(f"{folder / part} does not load: {error}") from error
    return opened
