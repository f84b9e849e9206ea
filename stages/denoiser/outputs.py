"""Denoiser outputs, split into tensors and a JSON structure for storage, and rebuilt from them."""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.storage.fingerprint import Plain

Output = Any
"""What a denoiser returns: a tensor, or tuples, lists and diffusers outputs of tensors."""


def leaves(output: Output) -> list[Tensor]:
    """The tensors of a denoiser output (or argument), in a fixed order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        return [leaf for item in output.values() for leaf in leaves(item)]
    if isinstance(output, list | tuple):
        return [leaf for item in output for leaf in leaves(item)]
    return []


def is_finite(output: Output) -> bool:
    """Whether all numbers of an output are finite."""
    return all(bool(leaf.isfinite().all()) for leaf in leaves(output))


def of_samples(output: Output, of: int, start: int, stop: int) -> Output:
    """The samples `start` to `stop` of an output for a batch of `of` samples (at least 2).

    Takes tensors [of, ...] or [k * of, ...] (guidance: all samples with the prompt, then all without), and lists of one
    tensor per sample. Raises StageError for other outputs.
    """
    if isinstance(output, Tensor):
        if not output.dim() or output.shape[0] % of:
            raise StageError(
                f"the denoiser returns a tensor of shape {list(output.shape)} for {of} samples, which cannot be split "
                "into samples; set search.samples=0"
            )
        return output if not len(output) else output.unflatten(0, (-1, of))[:, start:stop].flatten(0, 1)
    if isinstance(output, BaseOutput):
        return type(output)(**{key: of_samples(item, of, start, stop) for key, item in output.items()})
    if isinstance(output, dict):
        return {key: of_samples(item, of, start, stop) for key, item in output.items()}
    if isinstance(output, list) and output and len(output) % of == 0 and all(isinstance(x, Tensor) for x in output):
        return [x for first in range(0, len(output), of) for x in output[first + start : first + stop]]
    if isinstance(output, list | tuple):
        return type(output)(of_samples(item, of, start, stop) for item in output)
    return output


def structure(output: Output) -> Plain:
    """The shape of an output without its tensors, as plain JSON."""
    if isinstance(output, Tensor):
        return "tensor"
    if isinstance(output, BaseOutput):
        name = f"{type(output).__module__}:{type(output).__qualname__}"
        return {"kind": name, "items": {key: structure(item) for key, item in output.items()}}
    if isinstance(output, dict):
        return {"kind": "dict", "items": {key: structure(item) for key, item in output.items()}}
    if isinstance(output, list | tuple):
        return {"kind": type(output).__name__, "items": [structure(item) for item in output]}
    return {"kind": "plain", "value": json.loads(json.dumps(output))}


def stacked(outputs: Sequence[Output]) -> dict[str, Tensor]:
    """The tensors of several calls' outputs by name.

    Stacked over the calls (`output0`, ...) if shapes and dtypes are equal, else one by one (`output0.0`: call, place).
    """
    flat = [leaves(output) for output in outputs]
    if len({tuple((leaf.shape, leaf.dtype) for leaf in call) for call in flat}) == 1:
        return {f"output{i}": torch.stack([call[i] for call in flat]) for i in range(len(flat[0]))}
    return {f"output{j}.{i}": leaf for j, call in enumerate(flat) for i, leaf in enumerate(call)}


def unstacked(stored: Mapping[str, Tensor], shapes: Sequence[Any], device: torch.device | str) -> list[Output]:
    """Inverse of `stacked`, on `device`, for outputs of the structures `shapes`."""
    separate = any(name.startswith("output0.") for name in stored)

    def parts(j: int) -> Iterator[Tensor]:
        for i in itertools.count():
            tensor = stored.get(f"output{j}.{i}" if separate else f"output{i}")
            if tensor is None:
                return
            yield (tensor if separate else tensor[j]).to(device)

    return [rebuild(shape, parts(j)) for j, shape in enumerate(shapes)]


def rebuild(shape: Any, tensors: Iterator[Tensor]) -> Output:
    """Inverse of (`structure`, `leaves`). Raises StageError for a class that is not in diffusers."""
    if shape == "tensor":
        return next(tensors)
    kind = shape["kind"]
    if kind == "plain":
        return shape["value"]
    if kind in ("list", "tuple"):
        items = [rebuild(item, tensors) for item in shape["items"]]
        return items if kind == "list" else tuple(items)
    named = {key: rebuild(item, tensors) for key, item in shape["items"].items()}
    if kind == "dict":
        return named
    module, _, name = kind.partition(":")
    if module.split(".")[0] != "diffusers":
        raise StageError(f"a stored output names the class {kind!r}; only classes of diffusers are rebuilt")
    return getattr(importlib.import_module(module), name)(**named)
