"""The `adatsq` quantizer of transformers: lets `from_pretrained` load a text encoder whose weights are codes.

Importing `adatsq_pipe.stages.runtime` registers it where transformers is installed. diffusers has a quantizer of the
same name, for denoisers.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.quantizers import auto as text_auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin as TextConfigMixin

from adatsq_pipe.stages.runtime.quantizer import Method
from adatsq_pipe.stages.runtime.text_layers import PARTS, packed_layers, packings, place, tied

TEXT_FORMAT = 1
"""Version of what is written to a text encoder's folder: which modules are packed, and how."""
TEXT_BITS = (8, 4)


class AdatsqTextConfig(TextConfigMixin):  # type: ignore[misc]
    """`quantization_config` of a text encoder: bits of the layers in its blocks, and the modules that are left.

    Raises ValueError for another format, other bits, and unknown keys.
    """

    def __init__(
        self,
        *,
        bits: int = TEXT_BITS[0],
        left: Sequence[str] = (),
        format: int = TEXT_FORMAT,
        quant_method: str = Method.ADATSQ.value,
        **unknown: object,
    ) -> None:
        if format != TEXT_FORMAT:
            raise ValueError(
                f"this text encoder was written in format {format}, this version reads {TEXT_FORMAT}; "
                "update adatsq-pipe"
            )
        if unknown or bits not in TEXT_BITS:
            raise ValueError(
                f"quantization_config of a text encoder has bits {bits!r} and unknown keys {sorted(unknown)}; "
                "update adatsq-pipe"
            )
        self.quant_method = Method(quant_method)
        self.format, self.bits, self.left = format, bits, list(left)

    def to_dict(self) -> dict[str, object]:
        return {
            "quant_method": self.quant_method.value, "format": self.format, "bits": self.bits, "left": list(self.left),
        }  # fmt: skip


class AdatsqTextQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts packed layers in place before the weights are loaded."""

    requires_calibration = True

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: Sequence[str] | None = None, **kwargs: object
    ) -> nn.Module:
        """Raise ValueError if the files hold another number of packed layers than the model has."""
        shared = tied(model)
        placed = place(model, packings(model, self.quantization_config.bits, self.quantization_config.left), _dtype())
        _tie_parts(model, set(placed))
        own = len(set(placed) - set(shared))
        stored = [name for file in checkpoint_files or () for name in _names(file) if name.endswith(".scale")]
        if checkpoint_files and len(stored) != own:
            raise ValueError(
                f"the files of the text encoder hold {len(stored)} quantized layers, and its config makes {own}; "
                "copy the folder again, or update adatsq-pipe"
            )
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: object) -> nn.Module:
        for layer in packed_layers(model).values():
            layer.requires_grad_(False)
        if find_spec("peft"):
            # Only who has peft can put a LoRA on a model.
            from adatsq_pipe.stages.runtime import lora

            lora.extend_libraries()
        return model

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Scales in bfloat16, as they are stored, unless they have changed since and no longer fit; what is shared
        once."""
        state, layers = dict[str, Tensor](model.state_dict()), packed_layers(model)
        for target in tied(model):
            for part in PARTS if target in layers else ():
                state.pop(f"{target}.{part}", None)
        for name in layers:
            scale = state.get(f"{name}.scale")
            if scale is not None and scale.device.type != "meta":
                short = scale.to(torch.bfloat16)
                state[f"{name}.scale"] = short if torch.equal(short.to(scale.dtype), scale) else scale
        return state, {}

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        """Replace packed layers by plain ones of the same weights, in the dtype of the model."""
        shared = tied(model)
        for name, layer in packed_layers(model).items():
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, layer.plain())  # type: ignore[operator]
        keys = {key: source for key, source in model.all_tied_weights_keys.items() if not key.endswith(PARTS[1:])}  # type: ignore[operator, union-attr]
        model.all_tied_weights_keys = keys  # type: ignore[assignment]
        for target, source in shared.items():
            model.get_submodule(target).weight = model.get_submodule(source).weight
        return model

    def is_serializable(self, *args: object, **kwargs: object) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True


def _dtype() -> torch.dtype:
    """The dtype in which transformers makes the model: it is torch's default while it does."""
    return torch.get_default_dtype()


def _tie_parts(model: nn.Module, placed: set[str]) -> None:
    """Where a weight is shared, its scales and zero points are too."""
    shared = tied(model)
    more = {
        f"{target}.{part}": f"{source}.{part}"
        for target, source in shared.items()
        if target in placed
        for part in PARTS[1:]
    }
    if more:
        model.all_tied_weights_keys = {**model.all_tied_weights_keys, **more}  # type: ignore[dict-item, assignment]


def _names(file: str) -> list[str]:
    if not str(file).endswith(".safetensors"):
        return []
    with safe_open(file, "pt") as handle:
        return list(handle.keys())


def register_text() -> None:
    """Register the method with transformers, unless its name is taken."""
    text_auto.AUTO_QUANTIZER_MAPPING.setdefault(Method.ADATSQ.value, AdatsqTextQuantizer)
    text_auto.AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(Method.ADATSQ.value, AdatsqTextConfig)
