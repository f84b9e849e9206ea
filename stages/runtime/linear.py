"""QuantizedLinear: a linear layer of low-bit weights whose activations are rounded per token, at the bits of the step.

Weights are packed codes with per-channel or grouped scales; where the recipe rotates, the rotation is folded into the
codes and applied to the activations here. Activation rounding follows `bits`, set from outside before a call.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adatsq_pipe.stages.numerics.grid import decode, quantize_tokens
from adatsq_pipe.stages.numerics.packing import pack, packed_bytes, unpack
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY
from adatsq_pipe.stages.numerics.transform import hadamard, rotate


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """How one linear is stored: bits of its codes, input channels a scale covers (0 = all), rotation block (1 = none),
    and whether its activations are rounded on symmetric grids."""

    weight_bits: int
    group: int
    block: int
    symmetric_activations: bool

    def plain(self) -> dict[str, Any]:
        return asdict(self)


class SharedInput:
    """The last rounded input, so that layers fed the same tensor (q, k, v) at the same bits round it once."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._input: Tensor | None = None
        self._version = -1
        self._rounded: dict[tuple[int, int, bool], Tensor] = {}

    def rounded(self, x: Tensor, key: tuple[int, int, bool]) -> Tensor | None:
        same = self._input is x and self._version == x._version
        return self._rounded.get(key) if same else None

    def keep(self, x: Tensor, key: tuple[int, int, bool], rounded: Tensor) -> None:
        if self._input is not x or self._version != x._version:
            self._input, self._version, self._rounded = x, x._version, {}
        self._rounded[key] = rounded


class QuantizedLinear(nn.Module):
    """Stands where an `nn.Linear(in_features, out_features)` stood.

    Buffers: `codes` uint8 [out, ceil(in * bits / 8)], `scale` bfloat16 and `zero` uint8 [out, groups],
    `policy` uint8 [T] activation bits by calibrated step (16 = not rounded).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        spec: LayerSpec,
        steps: int,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.spec = in_features, out_features, spec
        groups = in_features // spec.group if spec.group else 1
        width = packed_bytes(in_features, spec.weight_bits)
        self.codes: Tensor
        self.scale: Tensor
        self.zero: Tensor
        self.policy: Tensor
        for name, shape, kind in (
            ("codes", (out_features, width), torch.uint8),
            ("scale", (out_features, groups), torch.bfloat16),
            ("zero", (out_features, groups), torch.uint8),
            ("policy", (steps,), torch.uint8),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=kind, device=device))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device)) if bias else None
        self.bits = WEIGHT_ONLY
        self.shared: SharedInput | None = None
        self._weight: Tensor | None = None
        self._rotation: Tensor | None = None

    def weight_as(self, dtype: torch.dtype) -> Tensor:
        """The weight that the codes stand for, in the rotated basis, [out, in]."""
        kept = self._weight
        if kept is not None and kept.device == self.codes.device and kept.dtype == dtype:
            return kept
        groups = self.scale.shape[1]
        codes = unpack(self.codes, self.spec.weight_bits, self.in_features).unflatten(1, (groups, -1))
        values = decode(codes, self.scale.float().unsqueeze(2), self.zero.float().unsqueeze(2))
        self._weight = values.flatten(1).to(dtype)
        return self._weight

    def set_codes(self, codes_OI: Tensor, scale_OG: Tensor, zero_OG: Tensor) -> None:
        """Take a solved weight (uint8 codes not yet packed)."""
        self.codes.copy_(pack(codes_OI, self.spec.weight_bits))
        self.scale.copy_(scale_OG)
        self.zero.copy_(zero_OG)
        self._weight = None

    def _prepared(self, x: Tensor) -> Tensor:
        key = (self.bits, self.spec.block, self.spec.symmetric_activations)
        shared = None if torch.compiler.is_compiling() or x.is_inference() else self.shared
        if shared is not None and (kept := shared.rounded(x, key)) is not None:
            return kept
        out = x
        if self.spec.block > 1:
            if self._rotation is None or self._rotation.device != x.device or self._rotation.dtype != x.dtype:
                self._rotation = hadamard(self.spec.block, dtype=x.dtype, device=x.device)
            out = rotate(out, self._rotation)
        if self.bits < WEIGHT_ONLY:
            out = quantize_tokens(out, 2.0**self.bits - 1, symmetric=self.spec.symmetric_activations)
        if shared is not None:
            shared.keep(x, key, out)
        return out

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self._prepared(x), self.weight_as(x.dtype), self.bias)

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, {self.spec}"


def replace_linears(model: nn.Module, specs: dict[str, LayerSpec], *, steps: int) -> dict[str, QuantizedLinear]:
    """Put an empty QuantizedLinear in the place of every linear named in `specs`; ValueError if a name is none."""
    placed, shared = {}, SharedInput()
    for name, spec in specs.items():
        parent_name, _, leaf = name.rpartition(".")
        try:
            parent = model.get_submodule(parent_name)
            old = getattr(parent, leaf)
        except AttributeError:
            old = None
        if not isinstance(old, nn.Linear):
            raise ValueError(f"the model has no linear layer {name!r}; it is not the model that was quantized")
        new = QuantizedLinear(
            old.in_features,
            old.out_features,
            spec=spec,
            steps=steps,
            bias=old.bias is not None,
            dtype=old.weight.dtype,
            device=old.weight.device,
        )
        new.shared = shared
        if old.bias is not None and new.bias is not None and old.weight.device.type != "meta":
            new.bias.data.copy_(old.bias.data)
        new.requires_grad_(False)
        setattr(parent, leaf, new)
        placed[name] = new
    return placed


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """The model's quantized layers by name, in module order."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}
