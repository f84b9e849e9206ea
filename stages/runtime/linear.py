"""QuantizedLinear: a linear layer of low-bit weights whose activations are rounded at the bits of the step.

What it is made of is said by its LayerSpec. It computes in one of three ways (`EXECUTIONS`): *reference* is the
definition, in float32; *simulate* keeps the weight that the codes stand for in the dtype of the input; *packed* keeps
codes alone and unpacks some rows at a time into whole numbers that the dtype holds exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional

from adatsq_pipe.stages.numerics.grid import (
    by_rows,
    dequantize,
    fake_quantize_regions,
    fake_quantize_to_codebook,
    fake_quantize_tokens,
    rows_of,
    static_codes,
    token_codes,
)
from adatsq_pipe.stages.numerics.lloyd import gaussian_codebook
from adatsq_pipe.stages.numerics.packing import pack, unpack
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY
from adatsq_pipe.stages.numerics.transform import hadamard, rotate
from adatsq_pipe.stages.runtime.shared import Rounded, SharedInput
from adatsq_pipe.stages.runtime.spec import LayerSpec

EXECUTIONS = ("reference", "simulate", "packed")
_UNPACKED_AT_ONCE = 2**24
"""Weights unpacked at once in packed execution: 32 MiB of them in bfloat16."""
_SMALL = 2**25
"""Weights in all up to which a model is held unpacked: 64 MiB of them in bfloat16."""
_CODES_FIRST = torch.bfloat16
"""The dtype that holds codes exactly, but not their values: where tokens and rows have one scale, it comes after."""

kernels: ModuleType | None = None
"""`runtime.kernels`, put here where there are a GPU and Triton; without them a GPU takes the CPU's way."""


class QuantizedLinear(nn.Module):
    """Stands where an `nn.Linear(in_features, out_features)` stood. Its buffers are those of `LayerSpec.tensors`."""

    codes: Tensor
    scale: Tensor
    zero: Tensor
    policy: Tensor
    book: Tensor
    order: Tensor
    smooth: Tensor
    down: Tensor
    up: Tensor
    time_group: Tensor
    step_scale: Tensor
    step_zero: Tensor
    levels: Tensor
    now_scale: Tensor
    now_zero: Tensor

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
        for name, (shape, kind) in spec.tensors(in_features, out_features, steps).items():
            self.register_buffer(name, torch.zeros(shape, dtype=kind, device=device))
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device)) if bias else None
        self.of_the_step = ("levels", "now_scale", "now_zero") if spec.time_groups else ("levels",)
        """Buffers that hold numbers of the step, as tensors: so one compiled graph serves every bit-width."""
        for name in self.of_the_step:
            self.register_buffer(name, torch.ones(()), persistent=False)
        self.execution = "simulate"
        self.rounds: bool | None = None
        """Whether activations are rounded at every step (True), at none (False), or at some (None)."""
        self.shared: SharedInput | None = None
        own = spec.permuted or spec.smoothed or spec.rank or spec.time_groups or spec.activation_codebook
        self._alone, self._grid = bool(own), (spec.block, spec.symmetric_activations, spec.activation_group)
        self._weight: Tensor | None = None
        self._rotation: Tensor | None = None
        self.code_sums: Tensor | None = None  # of `kernels`
        self.bits = WEIGHT_ONLY

    @property
    def bits(self) -> int:
        """Bits of the activations now; 16 = not rounded."""
        return self._bits

    @bits.setter
    def bits(self, bits: int) -> None:
        self._bits = bits
        self.levels.fill_(2.0**bits - 1)

    def at(self, steps: Sequence[int], policy: Sequence[int]) -> None:
        """Take the numbers of calibrated `steps`: their highest bits, and the widest of their calibrated scales."""
        self.bits = max(policy[step] for step in steps)
        if self.spec.time_groups:
            groups = [int(self.time_group[step]) for step in steps]
            widest = max(groups, key=lambda group: float(self.step_scale[group]))
            self.now_scale.copy_(self.step_scale[widest])
            self.now_zero.copy_(self.step_zero[widest])

    def set_tensors(self, stored: Mapping[str, Tensor]) -> None:
        """Take a solved weight: `codes` uint8 [out, in] not yet packed, the other buffers as they are."""
        for name, tensor in stored.items():
            getattr(self, name).copy_(pack(tensor, self.spec.weight_bits) if name == "codes" else tensor)
        self.forget()

    def forget(self) -> None:
        """Drop what was computed from the buffers."""
        self._weight = self._rotation = self.code_sums = None

    # --- weights

    def _whole(self, part: slice, dtype: torch.dtype) -> Tensor:
        """Whole numbers (or the table's values) that scales multiply, of some rows, [rows, groups, width]."""
        packed = rows_of(self.codes, part)
        codes = unpack(packed, self.spec.weight_bits, self.in_features).view(len(packed), self.scale.shape[1], -1)
        if self.spec.codebook:
            return self.book.to(dtype)[codes.int()]
        zero = rows_of(self.zero, part).unsqueeze(2)
        if self.spec.weight_bits < 8:
            return (codes.view(torch.int8) - zero.view(torch.int8)).to(dtype)
        return codes.to(dtype) - zero.to(dtype)

    def weight_as(self, dtype: torch.dtype) -> Tensor:
        """The weight that the codes stand for, in the transformed basis, [out, in]; kept."""
        kept = self._weight
        if kept is not None and kept.device == self.codes.device and kept.dtype == dtype:
            return kept
        whole = self._whole(slice(0, self.out_features), torch.float32)
        self._weight = (whole * self.scale.float().unsqueeze(2)).flatten(1).to(dtype)
        return self._weight

    def dequantized(self, dtype: torch.dtype) -> nn.Linear:
        """A plain linear of the weight that this layer stands for, branch included, in the basis of its input."""
        weight = self.weight_as(torch.float32)
        if self.spec.rank:
            weight = weight + self.up.float() @ self.down.float()
        if self.spec.block > 1:
            weight = rotate(weight, hadamard(self.spec.block, dtype=torch.float32, device=weight.device))
        if self.spec.smoothed:
            weight = weight * self.smooth.float()
        if self.spec.permuted:
            weight = torch.empty_like(weight).index_copy_(1, self.order.long(), weight)
        with torch.device("meta"):
            plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        plain.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        if self.bias is not None:
            plain.bias = self.bias
        self.forget()
        return plain

    # --- activations

    def arranged(self, x: Tensor) -> Tensor:
        """An input [..., in] in the layer's order of channels, smoothed."""
        if self.spec.permuted:
            x = x.index_select(-1, self.order)
        if self.spec.smoothed:
            x = x * self.smooth.to(x.dtype)
        return x

    def turn(self, x: Tensor) -> Tensor:
        """The rotation's block in the dtype of `x`; kept."""
        kept = self._rotation
        if kept is None or kept.device != x.device or kept.dtype != x.dtype:
            kept = hadamard(self.spec.block, dtype=x.dtype, device=x.device)
            if not torch.compiler.is_compiling():
                self._rotation = kept
        return kept

    def transformed(self, x: Tensor) -> Tensor:
        """An input [..., in] as it is rounded: `arranged` and rotated."""
        x = self.arranged(x)
        return rotate(x, self.turn(x)) if self.spec.block > 1 else x

    def _round(self, x: Tensor, *, as_codes: bool) -> Rounded:
        """The input, transformed already, at the step's bits."""
        compiling = torch.compiler.is_compiling()
        if self.rounds is False or (not compiling and self.bits >= WEIGHT_ONLY):
            return x, None
        levels: Tensor | float = self.levels if compiling else 2.0**self.bits - 1
        sometimes = compiling and self.rounds is None
        spec = self.spec
        if spec.regions:
            values = fake_quantize_regions(x, levels, self.now_scale)
        elif spec.time_groups:
            codes = static_codes(x, levels, self.now_scale, self.now_zero)
            if as_codes and not sometimes:
                return codes, self.now_scale
            values = (codes.float() * self.now_scale).to(x.dtype)
        elif spec.activation_codebook:
            values = (
                fake_quantize_to_codebook(x, gaussian_codebook(self.bits).to(x.device))
                if self.bits < WEIGHT_ONLY
                else x
            )
        elif as_codes and not spec.activation_group and not sometimes:
            return token_codes(x, levels, symmetric=spec.symmetric_activations)
        else:
            values = fake_quantize_tokens(x, levels, symmetric=spec.symmetric_activations, group=spec.activation_group)
        return (torch.where(self.levels < 2.0**WEIGHT_ONLY - 1, values, x) if sometimes else values), None

    def _prepared(self, x: Tensor, *, as_codes: bool) -> tuple[Rounded, Tensor | None]:
        """The rounded input, and what the low-rank branch takes."""
        shared = None if self._alone or torch.compiler.is_compiling() or x.is_inference() else self.shared
        key = (self._bits, self._grid, as_codes)
        if shared is not None and (kept := shared.rounded(x, key)) is not None:
            return kept, None
        rounded, branch = self._rounded(x, as_codes)
        if shared is not None:
            shared.keep(x, key, rounded)
        return rounded, branch

    def _rounded(self, x: Tensor, as_codes: bool) -> tuple[Rounded, Tensor | None]:
        """`transformed` and `_round`, a large input in chunks."""
        times: list[Tensor | None] = []

        def work(x: Tensor) -> list[Tensor]:
            transformed = self.transformed(x)
            values, scale = self._round(transformed, as_codes=as_codes)
            times.append(scale)
            found = [values] if scale is None or scale.ndim == 0 else [values, scale]
            return [*found, transformed] if self.spec.rank else found

        found = by_rows(work, x)
        branch = found.pop() if self.spec.rank else None
        return (found[0], found[1] if len(found) == 2 else times[0]), branch

    # --- products

    def forward(self, x: Tensor) -> Tensor:
        if self.execution == "simulate":
            (values, _), branch = self._prepared(x, as_codes=False)
            out = functional.linear(values, self.weight_as(x.dtype), self.bias)
            return out if branch is None else out + self.branch(branch)
        if self.execution == "packed":
            return self._packed(x)
        return self._reference(x)

    def branch(self, x: Tensor) -> Tensor:
        """What the low-rank branch adds, of a transformed input."""
        return functional.linear(functional.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))

    def _reference(self, x: Tensor) -> Tensor:
        """What the layer is defined to give: float32 throughout, nothing kept."""
        groups = self.scale.shape[1]
        codes = unpack(self.codes, self.spec.weight_bits, self.in_features).unflatten(1, (groups, -1))
        scale = self.scale.float().unsqueeze(2)
        if self.spec.codebook:
            weight = self.book[codes.int()] * scale
        else:
            weight = dequantize(codes, scale, self.zero.float().unsqueeze(2))
        transformed = self.transformed(x.float())
        out = functional.linear(self._round(transformed, as_codes=False)[0], weight.flatten(1))
        if self.spec.rank:
            out = out + self.branch(transformed)
        return (out if self.bias is None else out + self.bias.float()).to(x.dtype)

    def _packed(self, x: Tensor) -> Tensor:
        """Unpacked rows times the rounded input, as in `simulate`; in _CODES_FIRST codes times codes, then scales."""
        spec, dtype = self.spec, x.dtype
        if kernels is not None and x.is_cuda and not torch.compiler.is_compiling() and kernels.takes(self):
            return kernels.packed_linear(self, x)  # type: ignore[no-any-return]
        whole = self.scale.shape[1] == 1 and not spec.codebook and dtype == _CODES_FIRST
        (values, times), branch = self._prepared(x, as_codes=whole)
        step = max(1, _UNPACKED_AT_ONCE // self.in_features)
        bias = None if self.bias is None else self.bias.to(dtype)
        parts = []
        for start in range(0, self.out_features, step):
            part = slice(start, start + step)
            rows, scale = self._whole(part, dtype), rows_of(self.scale, part).unsqueeze(2)
            if whole:
                parts.append(functional.linear(values, rows.flatten(1)).mul_(scale.flatten()))
            else:
                rows, own = rows.mul_(scale).flatten(1), None if bias is None else rows_of(bias, part)
                parts.append(functional.linear(values, rows, own))
        out = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        if times is not None:
            out = out.mul_(times.to(dtype))
        if whole and bias is not None:
            out = out.add_(bias)
        return out if branch is None else out.add_(self.branch(branch))

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, {self.spec}, execution={self.execution}"


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
        placed[name] = new
    return placed


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """The model's quantized layers by name, in module order."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}


def execute(model: nn.Module, execution: str) -> None:
    """Have every quantized layer of `model` compute in the way `execution`; ValueError if there is none of the name."""
    if execution not in EXECUTIONS:
        raise ValueError(f"there is no execution {execution!r}; choose of {', '.join(EXECUTIONS)}")
    for layer in quantized_layers(model).values():
        layer.execution = execution
        layer.forget()


def suited_execution(model: nn.Module) -> str:
    """What a loaded model computes by until it is told otherwise: `packed`, or `simulate` if it is so small that
    unpacking costs more than the memory is worth."""
    weights = sum(layer.in_features * layer.out_features for layer in quantized_layers(model).values())
    return "packed" if weights > _SMALL else "simulate"
