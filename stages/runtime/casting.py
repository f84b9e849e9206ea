"""`model.to(dtype)` for a quantized model: what is stored in the file's own dtypes stays, the rest is cast.

diffusers refuses to cast quantized models. A pipeline's `to`, which `from_pipe` calls, has cast the text encoders by
then, and the pipeline cannot be run any more.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from adatsq_pipe.stages.runtime.linear import QuantizedLinear

CASTS = {"float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16, "double": torch.float64}
"""Methods of a module that cast it, and to what."""


def allow_casting(model: nn.Module) -> None:
    """Let `model.to` take a dtype, and `model.half()` and the like work, as those of a model that is not quantized."""
    model.to = functools.partial(_to, model)  # type: ignore[method-assign]
    for name, dtype in CASTS.items():
        setattr(model, name, functools.partial(_to, model, dtype))


def _to(model: nn.Module, *args: object, **kwargs: object) -> nn.Module:
    """As `torch.nn.Module.to`: to a device, to a dtype, to both, or to those of a tensor."""
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)  # type: ignore[call-overload]
    if dtype is None:
        # diffusers refuses `dtype` even if it is None, as where it saves a LoRA.
        kwargs.pop("dtype", None)
        type(model).to(model, *args, **kwargs)  # type: ignore[call-overload]
        return model
    if device is not None:
        type(model).to(model, device)
    cast_unquantized(model, dtype)
    return model


def cast_unquantized(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the floating-point parameters and buffers of `model` to `dtype`, as loading at it does: not those of
    quantized layers, except the bias, nor those of modules that the model's class keeps in float32."""
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, module in model.named_modules():
        if kept & set(name.split(".")):
            continue
        if isinstance(module, QuantizedLinear):
            module.compute_dtype = dtype
        own: list[tuple[str, Tensor]] = list(module.named_parameters(recurse=False))
        own += [] if isinstance(module, QuantizedLinear) else list(module.named_buffers(recurse=False))
        for leaf, tensor in own:
            if tensor.is_floating_point() and leaf not in kept:
                tensor.data = tensor.data.to(dtype)
