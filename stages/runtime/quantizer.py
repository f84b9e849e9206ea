"""The `adatsq` quantizer of diffusers: lets `from_pretrained` load a folder that the pipeline assembled.

Importing `adatsq_pipe.stages.runtime` registers it. Tensors of quantized layers are taken as stored, never cast.
"""

from __future__ import annotations

import copy
import re
from enum import StrEnum
from importlib.util import find_spec
from math import isfinite
from typing import Any

import torch
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import Tensor, nn

from adatsq_pipe.stages.runtime.casting import CASTS, allow_casting
from adatsq_pipe.stages.runtime.model import (
    default_execution,
    execute,
    leave_inference_mode,
    quantized_layers,
    replace_linears,
    without_adapters,
)
from adatsq_pipe.stages.runtime.policy_hook import attach_policy_hook, remove_policy_hook
from adatsq_pipe.stages.runtime.refusals import refuse_disk, refuse_fused_projections
from adatsq_pipe.stages.runtime.spec import FORMAT, LayerSpec
from adatsq_pipe.stages.runtime.stored import as_stored, stored_dtypes


class Method(StrEnum):
    """The name of the method in `quantization_config`; diffusers expects an enumeration of strings."""

    ADATSQ = "adatsq"


class AdatsqConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """`quantization_config` of a quantized transformer: the LayerSpec of each layer and the calibrated timesteps.

    Without arguments it stands for the configuration in the folder, where diffusers wants one passed in. Raises
    ValueError for another format, unknown keys, and values that are no layers or no timesteps.
    """

    def __init__(
        self,
        *,
        layers: dict[str, dict[str, Any]] | None = None,
        timesteps: list[float] | None = None,
        timestep: str = "",
        format: int = FORMAT,
        runtime: dict[str, object] | None = None,
        quant_method: str = Method.ADATSQ.value,
        **unknown: object,
    ) -> None:
        if format != FORMAT:
            raise ValueError(
                f"this model was written in format {format}, this version reads {FORMAT}; update adatsq-pipe"
            )
        if unknown:
            raise ValueError(f"quantization_config has unknown keys {sorted(unknown)}; update adatsq-pipe")
        if layers is not None:
            _check_contents(layers, timesteps, timestep)
        self.quant_method = Method(quant_method)
        self.format, self.layers, self.timesteps = format, layers or {}, timesteps or []
        self.timestep = timestep
        """Name of the timestep among the arguments of the transformer's call; empty: one of the usual names."""
        self.runtime = runtime
        """A section for other engines, passed through unchanged."""

    def to_dict(self) -> dict[str, object]:
        return {
            "quant_method": self.quant_method.value,
            "format": self.format,
            "layers": copy.deepcopy(self.layers),
            "timesteps": list(self.timesteps),
            **({"timestep": self.timestep} if self.timestep else {}),
            **({"runtime": copy.deepcopy(self.runtime)} if self.runtime else {}),
        }

    def to_diff_dict(self) -> dict[str, object]:
        return self.to_dict()

    @property
    def specs(self) -> dict[str, LayerSpec]:
        """The LayerSpec of each layer, by name. Raises ValueError for one with unknown or contradictory parts."""
        specs = {}
        for name, fields in self.layers.items():
            try:
                specs[name] = LayerSpec(**fields)
                sizes = {key: value for key, value in fields.items() if key != "number_format"}
                if wrong := [key for key, value in sizes.items() if not isinstance(value, int) or value < 0]:
                    raise ValueError(f"{wrong[0]} is {fields[wrong[0]]!r}, not a size")
            except (TypeError, ValueError) as error:
                raise ValueError(f"quantization_config of layer {name!r}: {error}; update adatsq-pipe") from None
        return specs


def _check_contents(layers: object, timesteps: object, timestep: object) -> None:
    """Raise ValueError for a `quantization_config` that no model can follow: without layers, or without timesteps."""
    if not isinstance(layers, dict) or not layers or not all(isinstance(fields, dict) for fields in layers.values()):
        raise ValueError("quantization_config names no layers with their parts; copy the folder again")
    numbers = isinstance(timesteps, list) and all(isinstance(t, int | float) and isfinite(t) for t in timesteps)
    if not timesteps or not numbers:
        raise ValueError(f"quantization_config has the timesteps {timesteps!r}, no list of numbers: no policy")
    if not isinstance(timestep, str):
        raise ValueError(f"quantization_config has the timestep {timestep!r}, not the name of an argument")


class AdatsqQuantizer(DiffusersQuantizer):  # type: ignore[misc]
    """Puts QuantizedLinear layers in place before loading, and the policy hook after it."""

    requires_calibration = True
    use_keep_in_fp32_modules = True

    def __init__(self, quantization_config: AdatsqConfig, **kwargs: object) -> None:
        super().__init__(quantization_config, **kwargs)
        self._stored_dtypes: dict[str, torch.dtype] = {}
        self._loaded_names: set[str] = set()
        self._quantized_names: set[str] = set()

    def validate_environment(self, *args: object, device_map: object = None, **kwargs: object) -> None:
        """Raise ValueError for a device map that quantized layers cannot follow."""
        refuse_disk(device_map)

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[str]) -> list[str]:
        """Record which tensors the files hold, and in which dtypes."""
        self._loaded_names = set(loaded_keys)
        self._stored_dtypes |= stored_dtypes(checkpoint_files or [])
        return loaded_keys

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: object) -> None:
        config = self.quantization_config
        _check_contents(config.layers, config.timesteps, config.timestep)
        layers = replace_linears(model, config.specs, steps=len(config.timesteps))
        self._quantized_names = {
            f"{name}.{part}"
            for name, layer in layers.items()
            for part in layer.spec.tensors(layer.in_features, layer.out_features, len(config.timesteps))
        }

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        """Raise ValueError if the files lack tensors of the model (they would stay zero), or hold others."""
        ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []
        expected = set(model.state_dict())
        names = self._loaded_names
        extra = sorted(n for n in names - expected if not any(re.search(pattern, n) for pattern in ignored))
        missing = sorted(expected - names)
        if missing or extra:
            faults = [f"lack {len(missing)} tensors, first {missing[0]!r}"] if missing else []
            faults += [f"hold {len(extra)} that the model does not know, first {extra[0]!r}"] if extra else []
            raise ValueError(f"the weights {' and '.join(faults)}; copy the folder again")
        return missing_keys

    def check_if_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, state_dict: dict[str, Tensor], **kwargs: object
    ) -> bool:
        """Whether a tensor is one of a quantized layer; the bias is not, diffusers loads it."""
        return param_name in self._quantized_names

    def check_quantized_param_shape(self, param_name: str, current: Tensor, loaded: Tensor) -> bool:
        """Raise ValueError if the tensor `loaded` from the file has another shape than `current`, the layer's."""
        if current.shape != loaded.shape:
            raise ValueError(
                f"{param_name} has shape {list(loaded.shape)}, expected {list(current.shape)}: "
                "the file is not this model's"
            )
        return True

    def create_quantized_param(
        self,
        model: nn.Module,
        param_value: Tensor,
        param_name: str,
        target_device: torch.device | str,
        state_dict: dict[str, Tensor],
        unexpected_keys: list[str] | None = None,
        **kwargs: object,
    ) -> None:
        """Put a stored tensor into its layer, in the dtype of the file: `param_value` may have been cast.

        Raises ValueError if its dtype or its shape is not the layer's.
        """
        layer_name, _, part = param_name.rpartition(".")
        layer, stored = model.get_submodule(layer_name), state_dict[param_name]
        expected = getattr(layer, part)
        if stored.dtype != expected.dtype:
            raise ValueError(f"{param_name} is {stored.dtype}, expected {expected.dtype}: the file was altered")
        self.check_quantized_param_shape(param_name, expected, stored)
        setattr(layer, part, stored.to(target_device))

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: object) -> nn.Module:
        leave_inference_mode(model)
        for layer in quantized_layers(model).values():
            for name in layer.step_buffers:
                setattr(layer, name, getattr(layer, name).to(layer.codes.device))
        attach_policy_hook(model, self.quantization_config.timesteps, self.quantization_config.timestep)
        execute(model, default_execution(model))
        allow_casting(model)
        refuse_fused_projections(model)
        if find_spec("peft"):
            # Only who has peft can put a LoRA on a model.
            from adatsq_pipe.stages.runtime import lora

            lora.allow_lora(model)
        return model

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Tensor], safe_serialization: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Every tensor in the dtype of the file that it was loaded from, unless its values have changed since and no
        longer fit that dtype."""
        state_dict = without_adapters(state_dict)
        return {name: as_stored(tensor, self._stored_dtypes.get(name)) for name, tensor in state_dict.items()}, {}

    def _dequantize(self, model: nn.Module) -> nn.Module:
        """Replace quantized layers by plain linears with the same weights; activations are then no longer rounded."""
        remove_policy_hook(model)
        for entry in (*CASTS, "to", "fuse_qkv_projections"):
            model.__dict__.pop(entry, None)
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        for name, layer in quantized_layers(model).items():
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, layer.dequantized(dtype))
        return model

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether adapters can be trained on top."""
        return True

    @property
    def is_compileable(self) -> bool:
        return True


def register() -> None:
    """Register the method with diffusers, unless its name is taken."""
    auto.AUTO_QUANTIZER_MAPPING.setdefault(Method.ADATSQ.value, AdatsqQuantizer)
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(Method.ADATSQ.value, AdatsqConfig)
