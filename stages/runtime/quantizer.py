"""The `adatsq` quantizer of diffusers: lets `from_pretrained` load a folder that the pipeline assembled.

Importing `adatsq_pipe.stages.runtime` registers it. Tensors of quantized layers are taken as stored, never cast.
"""

from __future__ import annotations

import copy
from enum import StrEnum
from typing import Any

import torch
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import Tensor, nn

from adatsq_pipe.stages.runtime.follow import follow_policy
from adatsq_pipe.stages.runtime.linear import LayerSpec, replace_linears

FORMAT = 1


class Method(StrEnum):
    """diffusers asks for a text enumeration."""

    ADATSQ = "adatsq"


class AdatsqConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """`quantization_config` of a quantized transformer: a LayerSpec by layer, the calibrated timesteps."""

    def __init__(
        self,
        *,
        layers: dict[str, dict[str, Any]],
        timesteps: list[float],
        format: int = FORMAT,
        quant_method: str = Method.ADATSQ.value,
        **unknown: object,
    ) -> None:
        if format != FORMAT:
            raise ValueError(
                f"this model was written in format {format}, this version reads {FORMAT}; update adatsq-pipe"
            )
        if unknown:
            raise ValueError(f"quantization_config has unknown keys {sorted(unknown)}; update adatsq-pipe")
        self.quant_method = Method(quant_method)
        self.format, self.layers, self.timesteps = format, layers, timesteps

    def to_dict(self) -> dict[str, Any]:
        return {
            "quant_method": self.quant_method.value,
            "format": self.format,
            "layers": copy.deepcopy(self.layers),
            "timesteps": list(self.timesteps),
        }

    def to_diff_dict(self) -> dict[str, Any]:
        return self.to_dict()

    @property
    def specs(self) -> dict[str, LayerSpec]:
        return {name: LayerSpec(**spec) for name, spec in self.layers.items()}


_STORED = ("codes", "scale", "zero", "policy")


class AdatsqQuantizer(DiffusersQuantizer):  # type: ignore[misc]
    """Puts QuantizedLinear layers in place before loading, and the policy hook after it."""

    requires_calibration = True
    use_keep_in_fp32_modules = True

    def __init__(self, quantization_config: AdatsqConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._awaited: set[str] = set()

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        config = self.quantization_config
        placed = replace_linears(model, config.specs, steps=len(config.timesteps))
        self._awaited = {f"{name}.{part}" for name in placed for part in _STORED}

    def check_if_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, state_dict: dict[str, Any], **kwargs: Any
    ) -> bool:
        return param_name in self._awaited or (
            param_name.rpartition(".")[0] in self.quantization_config.layers
            and param_name.rpartition(".")[2] in _STORED
        )

    def check_quantized_param_shape(self, param_name: str, current: Tensor, given: Tensor) -> bool:
        if current.shape != given.shape:
            raise ValueError(
                f"{param_name} has shape {list(given.shape)}, expected {list(current.shape)}: "
                "the file is not this model's"
            )
        return True

    def create_quantized_param(
        self,
        model: nn.Module,
        param_value: Tensor,
        param_name: str,
        target_device: torch.device | str,
        state_dict: dict[str, Any],
        unexpected_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        owner, _, part = param_name.rpartition(".")
        layer, stored = model.get_submodule(owner), state_dict[param_name]
        expected = getattr(layer, part)
        if stored.dtype != expected.dtype:
            raise ValueError(f"{param_name} is {stored.dtype}, expected {expected.dtype}: the file was altered")
        self.check_quantized_param_shape(param_name, expected, stored)
        setattr(layer, part, stored.to(target_device))
        self._awaited.discard(param_name)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        if self._awaited:
            raise ValueError(
                f"the checkpoint lacks {len(self._awaited)} tensors of quantized layers, first {min(self._awaited)!r}; "
                "copy the folder again"
            )
        follow_policy(model, self.quantization_config.timesteps)
        return model

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def register() -> None:
    """Make diffusers know the method. What somebody else registered under the name is left alone."""
    auto.AUTO_QUANTIZER_MAPPING.setdefault(Method.ADATSQ.value, AdatsqQuantizer)
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(Method.ADATSQ.value, AdatsqConfig)
