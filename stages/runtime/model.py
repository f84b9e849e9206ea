"""The quantized layers of a model: placed, found, and set to one way of computing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adatsq_pipe.stages.runtime.linear import EXECUTIONS, QuantizedLinear
from adatsq_pipe.stages.runtime.shared import SharedInput
from adatsq_pipe.stages.runtime.spec import LayerSpec

_ADAPTED = ".base_layer."
"""Stands in the names of a layer's own tensors while it has an adapter."""
_SMALL = 2**25
"""Weights in all up to which a loaded model keeps them unpacked: 64 MiB of them in bfloat16."""


def replace_linears(model: nn.Module, specs: Mapping[str, LayerSpec], *, steps: int) -> dict[str, QuantizedLinear]:
    """Replace every linear named in `specs` by an empty QuantizedLinear with a policy of `steps`; returns them by name.

    The layers keep the bias, and share their rounded inputs. Raises ValueError if a name is no linear of the model, or
    a spec does not fit it.
    """
    layers, shared = {}, SharedInput()
    for name, spec in specs.items():
        parent_name, _, leaf = name.rpartition(".")
        try:
            parent = model.get_submodule(parent_name)
            old = getattr(parent, leaf)
        except AttributeError:
            old = None
        if not isinstance(old, nn.Linear):
            raise ValueError(f"the model has no linear layer {name!r}; it is not the model that was quantized")
        try:
            new = QuantizedLinear(
                old.in_features,
                old.out_features,
                spec=spec,
                steps=steps,
                bias=old.bias is not None,
                dtype=old.weight.dtype,
                device=old.weight.device,
            )
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from None
        new.shared = shared
        if old.bias is not None and new.bias is not None and old.weight.device.type != "meta":
            new.bias.data.copy_(old.bias.data)
        new.requires_grad_(False)
        setattr(parent, leaf, new)
        layers[name] = new
    return layers


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """The model's quantized layers by name, in module order."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}


def without_adapters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model's `state` without those of its adapters (LoRA), by the names that they have without them.

    Warns if it leaves out any.
    """
    adapted = {name.partition(_ADAPTED)[0] + "." for name in state if _ADAPTED in name}
    kept = {
        name.replace(_ADAPTED, "."): tensor
        for name, tensor in state.items()
        if _ADAPTED in name or not any(name.startswith(layer) for layer in adapted)
    }
    if len(kept) < len(state):
        warnings.warn(
            "the model is saved without its LoRA: save that with save_lora_weights or save_lora_adapter", stacklevel=2
        )
    return kept


def leave_inference_mode(model: nn.Module) -> None:
    """Replace tensors that were made inside `torch.inference_mode` by copies that may be changed outside of it: the
    policy hook writes some before every call, and casting writes all."""
    with torch.inference_mode(False):
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None and parameter.is_inference():
                    module._parameters[name] = nn.Parameter(parameter.clone(), parameter.requires_grad)
            for name, buffer in list(module._buffers.items()):
                if buffer is not None and buffer.is_inference():
                    module._buffers[name] = buffer.clone()


def execute(model: nn.Module, execution: str) -> None:
    """Set how every quantized layer of `model` computes: one of `EXECUTIONS`. Raises ValueError for another name."""
    if execution not in EXECUTIONS:
        raise ValueError(f"there is no execution {execution!r}; choose of {', '.join(EXECUTIONS)}")
    for layer in quantized_layers(model).values():
        layer.execution = execution
        layer.drop_cache()


def default_execution(model: nn.Module) -> str:
    """How a loaded model computes: `packed`, or `simulate` if it is so small that unpacking costs more time than the
    memory is worth."""
    weights = sum(layer.in_features * layer.out_features for layer in quantized_layers(model).values())
    return "packed" if weights > _SMALL else "simulate"
