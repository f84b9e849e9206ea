"""LoRA on a quantized model, through the calls of diffusers and peft.

A LoRA's branch reads the input of its layer as it is: the layer permutes, smooths, rotates and rounds a copy of its
own. peft and diffusers know no layer type but their own, so both are extended here, once, when a quantized model loads.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin
from peft import LoraConfig
from peft.tuners.lora import Linear, LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional

from adatsq_pipe.stages.runtime.linear import QuantizedLinear
from adatsq_pipe.stages.runtime.model import quantized_layers
from adatsq_pipe.stages.runtime.text_layers import PackedLinear

_QUANTIZED = (QuantizedLinear, PackedLinear)
"""Layers of a quantized transformer, and of a quantized text encoder."""
_INITS = (True, False, "gaussian", "eva")
"""Ways to start a LoRA that need no full-precision weight."""
_NOT_FUSED = (
    "a LoRA cannot be fused into low-bit codes, whose rounding would swallow most of it: leave it beside them, which "
    "needs no fuse_lora, or fuse it into the full-precision pipeline (fuse_lora, unload_lora_weights, save_pretrained) "
    "and quantize that"
)


class QuantizedLora(Linear):  # type: ignore[misc]
    """peft's LoRA layer around a quantized one: its output, plus the branches of the active adapters."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        with warnings.catch_warnings():
            # peft does not know the layer's type, and takes its widths from the usual attributes.
            warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
            super().__init__(*args, **kwargs)

    def update_layer(self, *args: object, **kwargs: object) -> None:
        """As peft's: add an adapter. Raises ValueError if it needs the layer's full-precision weight."""
        config = kwargs.get("config")
        if isinstance(config, LoraConfig) and isinstance(self.get_base_layer(), _QUANTIZED):
            _check(config)
        super().update_layer(*args, **kwargs)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """As peft's, where the layer has been dequantized since; else raises ValueError."""
        if isinstance(self.get_base_layer(), _QUANTIZED):
            raise ValueError(_NOT_FUSED)
        super().merge(safe_merge=safe_merge, adapter_names=adapter_names)


def allow_lora(model: nn.Module) -> None:
    """Let `model` take LoRAs on its quantized layers. What is refused, a LoRA or `fuse_lora`, leaves no trace in it."""
    extend_libraries()
    for entry, own in (("add_adapter", _add), ("load_lora_adapter", _load), ("fuse_lora", _fuse)):
        if hasattr(model, entry):
            setattr(model, entry, functools.partial(own, model))


def _add(model: nn.Module, adapter_config: object, *args: object, **kwargs: object) -> None:
    if isinstance(adapter_config, LoraConfig) and quantized_layers(model):
        # Some of what is refused would change the weights of layers that are not quantized, whose turn comes before.
        _check(adapter_config)
    with _undone_if_refused(model):
        type(model).add_adapter(model, adapter_config, *args, **kwargs)  # type: ignore[attr-defined]


def _load(model: nn.Module, *args: object, **kwargs: object) -> None:
    with _undone_if_refused(model):
        type(model).load_lora_adapter(model, *args, **kwargs)  # type: ignore[attr-defined]


@contextmanager
def _undone_if_refused(model: nn.Module) -> Iterator[None]:
    """Remove what the body has added to `model` if it raises: diffusers leaves layers whose turn came before."""
    before = set(getattr(model, "peft_config", None) or {})
    try:
        yield
    except Exception:
        if before:
            _remove_adapters_except(model, before)
        else:
            model.unload_lora()  # type: ignore[operator]
        raise


def _remove_adapters_except(model: nn.Module, kept: set[str]) -> None:
    """Delete all other adapters, and unwrap the layers that had no adapter but those."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            for name in layer._get_available_adapters() - kept:
                layer.delete_adapter(name)
            if not layer._get_available_adapters():
                parent, _, leaf = path.rpartition(".")
                setattr(model.get_submodule(parent), leaf, layer.get_base_layer())
    for name in set(model.peft_config) - kept:  # type: ignore[arg-type]
        del model.peft_config[name]  # type: ignore[operator, union-attr]


def _fuse(
    model: nn.Module, lora_scale: float = 1.0, safe_fusing: bool = False, adapter_names: list[str] | None = None
) -> None:
    """As diffusers' `fuse_lora`, where no adapter to be fused has a branch on a quantized layer."""
    for module in model.modules():
        if isinstance(module, QuantizedLora) and isinstance(module.get_base_layer(), QuantizedLinear):
            fused = module.active_adapters if adapter_names is None else adapter_names
            if set(fused) & set(module.lora_A):
                raise ValueError(_NOT_FUSED)
    type(model).fuse_lora(model, lora_scale, safe_fusing, adapter_names)  # type: ignore[attr-defined]


@functools.cache
def extend_libraries() -> None:
    """Let peft put a LoRA on quantized layers, and diffusers read their shapes; once."""
    create = LoraModel._create_new_module

    def create_new_module(lora_config: LoraConfig, adapter_name: str, target: nn.Module, **kwargs: object) -> nn.Module:
        layer = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if isinstance(layer, _QUANTIZED):
            lora_config._register_custom_module({type(layer): QuantizedLora})
        created: nn.Module = create(lora_config, adapter_name, target, **kwargs)
        return created

    LoraModel._create_new_module = staticmethod(create_new_module)
    expand = FluxLoraLoaderMixin._maybe_expand_lora_state_dict.__func__

    def expanded(cls: type, transformer: nn.Module, lora_state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        prefix: str = f"{cls.transformer_name}."  # type: ignore[attr-defined]
        return _expanded(functools.partial(expand, cls, transformer), prefix, transformer, lora_state_dict)

    FluxLoraLoaderMixin._maybe_expand_lora_state_dict = classmethod(expanded)


def _check(config: LoraConfig) -> None:
    """Raise ValueError for a LoRA that needs the full-precision weight of its layer."""
    if config.init_lora_weights not in _INITS:
        raise ValueError(
            f"init_lora_weights={config.init_lora_weights!r} starts from a layer's full-precision weight, which a "
            "quantized layer has no more; choose True, False or 'gaussian'"
        )
    if config.use_dora:
        raise ValueError(
            "a DoRA rescales a layer's full-precision weight, which a quantized layer has no more: load it into the "
            "full-precision pipeline, fuse it there (fuse_lora, unload_lora_weights, save_pretrained) and quantize that"
        )


def _expanded(
    expand: Callable[..., dict[str, Tensor]], prefix: str, transformer: nn.Module, lora: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`lora` with what is narrower than its layer filled with zeros: so a LoRA of FLUX.1-dev fits FLUX.1-Fill-dev.

    diffusers' own `expand` does that by the shapes of weights, which quantized layers do not have.
    """
    layers = {prefix + name.removesuffix(".base_layer"): layer for name, layer in quantized_layers(transformer).items()}
    own = {key: layers[key.split(".lora_")[0]] for key in lora if key.split(".lora_")[0] in layers}
    others = expand({key: tensor for key, tensor in lora.items() if key not in own})
    return {key: _filled(key, lora[key], own[key]) if key in own else others[key] for key in lora}


def _filled(key: str, tensor: Tensor, layer: QuantizedLinear) -> Tensor:
    if not key.endswith(".lora_A.weight") or tensor.shape[1] == layer.in_features:
        return tensor
    if tensor.shape[1] > layer.in_features:
        raise ValueError(
            f"{key} has {tensor.shape[1]} input channels, its layer {layer.in_features}: the LoRA is of another model"
        )
    return functional.pad(tensor, (0, layer.in_features - tensor.shape[1]))
