"""The dtypes in which files hold a model's tensors: saving writes them again, whatever the model was cast to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors import safe_open
from torch import Tensor

_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip
"""Names of floating-point dtypes, of safetensors and of torch; older versions of torch lack the last."""
_DTYPES: dict[str, torch.dtype] = {ours: getattr(torch, name) for ours, name in _NAMES.items() if hasattr(torch, name)}


def stored_dtypes(files: Sequence[str]) -> dict[str, torch.dtype]:
    """The dtype of every floating-point tensor in files of weights: safetensors, or torch's own, read as tensors alone.

    Reads no tensor's numbers.
    """
    found: dict[str, torch.dtype] = {}
    for file in map(str, files):
        if file.endswith((".bin", ".pt", ".pth", ".ckpt")):
            views = torch.load(file, map_location="meta", weights_only=True)
            found |= {name: view.dtype for name, view in views.items() if view.is_floating_point()}
            continue
        with safe_open(file, "pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - a safetensors handle is not iterable
                if (dtype := _DTYPES.get(handle.get_slice(name).get_dtype())) is not None:
                    found[name] = dtype
    return found


def as_stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor in the dtype of its file, unless its values no longer fit that, or no file held it (None)."""
    if dtype is None or not tensor.is_floating_point() or tensor.dtype == dtype:
        return tensor
    cast = tensor.to(dtype)
    return cast if torch.equal(cast.to(tensor.dtype), tensor) else tensor
