"""Signatures that diffusers reads in every call of a layer, read once."""

from __future__ import annotations

import inspect
from types import FunctionType

from torch import nn


def keep_signatures(model: nn.Module) -> None:
    """Let the attention layers of `model` find the signature of their processor's `__call__` ready.

    Those of diffusers ask for it in every call to drop what it does not take, which costs a small layer as much as its
    product.
    """
    for module in model.modules():
        processor = getattr(module, "processor", None)
        function = vars(type(processor)).get("__call__")
        if isinstance(function, FunctionType) and not isinstance(processor, nn.Module):
            function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
