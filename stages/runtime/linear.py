"""QuantizedLinear: a linear layer of low-bit weights that rounds its input to the activation bits of the step.

Its LayerSpec says which parts it has. It computes in one of three ways (`EXECUTIONS`): *reference* is the definition,
in float32; *simulate* keeps the dequantized weight in the dtype of the input; *packed* keeps the codes alone and
unpacks some rows at a time, into integers that the dtype holds exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from adatsq_pipe.stages.numerics.clipping import fake_quantize_clipped
from adatsq_pipe.stages.numerics.float4 import block_values, fake_quantize_floats
from adatsq_pipe.stages.numerics.grid import (
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
from adatsq_pipe.stages.numerics.products import linear
from adatsq_pipe.stages.numerics.transform import rotate, rotate_back, rotate_twice
from adatsq_pipe.stages.runtime.rounding import RoundedInput, round_by_rows
from adatsq_pipe.stages.runtime.shared import SharedInput
from adatsq_pipe.stages.runtime.spec import LayerSpec, StoredTensors
from adatsq_pipe.stages.runtime.straight_through import StraightThrough

EXECUTIONS = ("reference", "simulate", "packed")
_UNPACKED_AT_ONCE = 2**24
"""Weights unpacked at once in packed execution: 32 MiB of them in bfloat16."""
_SCALED_LAST = torch.bfloat16
"""The input dtype for which packed execution multiplies codes by codes and applies the scales to the product: it holds
codes exactly, but not their values. Only where each token and each output channel has one scale."""


class GpuKernels(Protocol):
    """Packed execution on a GPU: what `runtime.kernels` offers."""

    def takes(self, layer: QuantizedLinear) -> bool:
        """Whether the kernels can compute `layer` at its present bits."""

    def packed_linear(self, layer: QuantizedLinear, x: Tensor) -> Tensor:
        """The output of `layer` for an input [..., in], in the dtype of `x`."""


class QuantizedLinear(nn.Module, StoredTensors):
    """Replaces an `nn.Linear(in_features, out_features)`. Its persistent buffers are its `spec`'s stored tensors.

    All of them, and the bias, start as zeros. `steps` is the length of its policy. Raises ValueError if the parts of
    the spec do not fit the layer's widths.
    """

    gpu_kernels: ClassVar[GpuKernels | None] = None
    """Set once by `use_gpu_kernels`; without them a GPU computes as a CPU does."""

    qmax: Tensor
    """float32 []: 2^bits - 1 of the activations now."""
    current_scale: Tensor
    current_zero: Tensor
    """float32 []: calibrated scale and zero point of the step's group."""
    current_clip: Tensor
    """float32 []: clipping ratio of the step's bin."""
    current_shift: Tensor
    current_output: Tensor
    """float32 [in] and [out]: what the step's group subtracts from the input, and adds to the output for it."""

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
        self.step_buffers = ("qmax", "current_scale", "current_zero") if spec.time_groups else ("qmax",)
        if spec.clip_bins:
            self.step_buffers = (*self.step_buffers, "current_clip")
        """Buffers that change from step to step. They are tensors so that one compiled graph serves every bit-width."""
        for name in self.step_buffers:
            self.register_buffer(name, torch.ones(()), persistent=False)
        if spec.shift_groups:
            self.step_buffers = (*self.step_buffers, "current_shift", "current_output")
            self.register_buffer("current_shift", torch.zeros(in_features), persistent=False)
            self.register_buffer("current_output", torch.zeros(out_features), persistent=False)
        self.compute_dtype = dtype
        """The model's dtype: that of an adapter put on the layer."""
        self.execution = "simulate"
        self.rounds: bool | None = None
        """Whether the policy rounds activations at every step (True), at none (False), or at some (None)."""
        self.shared: SharedInput | None = None
        """The model's: through it layers with the same input round it once."""
        self.has_own_input = bool(
            spec.permuted
            or spec.smoothed
            or spec.dual
            or spec.rank
            or spec.time_groups
            or spec.activation_codebook
            or spec.clip_bins
            or spec.shift_groups
        )
        """Whether the rounded input depends on tensors of this layer, or is also needed unrounded: not shared then."""
        self._rounding = (
            spec.block,
            spec.regular,
            spec.symmetric_activations,
            spec.activation_group,
            spec.number_format,
        )
        self._weight: Tensor | None = None
        self._rotation: Tensor | None = None
        self.code_sums: Tensor | None = None
        """Cache of the GPU kernels."""
        self.bits = WEIGHT_ONLY

    @property
    def qweight(self) -> Tensor:
        """The packed codes, by the name under which peft looks for a quantized layer's device."""
        return self.codes

    @property
    def bits(self) -> int:
        """Bits of the activations now; 16 = not rounded. Set by the policy hook (`policy_hook`) alone."""
        return self._bits

    @bits.setter
    def bits(self, bits: int) -> None:
        self._bits = bits
        self.qmax.fill_(2.0**bits - 1)

    def set_step(self, step: int, policy: Sequence[int]) -> None:
        """Set the bits and the calibrated scale of the calibrated `step`; `policy` is this layer's."""
        self.bits = policy[step]
        if self.spec.time_groups:
            group = int(self.time_group[step])
            self.current_scale.copy_(self.step_scale[group])
            self.current_zero.copy_(self.step_zero[group])
        if self.spec.clip_bins:
            self.current_clip.copy_(self.step_clip[int(self.clip_bin[step])])
        if self.spec.shift_groups:
            group = int(self.shift_group[step])
            self.current_shift.copy_(self.shift[group])
            self.current_output.copy_(self.shift_output[group])

    def set_tensors(self, stored: Mapping[str, Tensor]) -> None:
        """Copy a solved weight into the buffers: `codes` uint8 [out, in] not yet packed, other tensors as stored."""
        for name, tensor in stored.items():
            getattr(self, name).copy_(pack(tensor, self.spec.weight_bits) if name == "codes" else tensor)
        self.drop_cache()

    def drop_cache(self) -> None:
        """Drop what was computed from the buffers. To be called when they change."""
        self._weight = self._rotation = self.code_sums = None

    def _unscaled(self, part: slice, dtype: torch.dtype) -> Tensor:
        """Rows `part` of the weight before scaling, [rows, groups, width]: integers, or values of the codebook."""
        packed = rows_of(self.codes, part)
        codes = unpack(packed, self.spec.weight_bits, self.in_features).view(len(packed), self.scale.shape[1], -1)
        if self.spec.codebook:
            return self._from_book(codes, part, dtype)
        zero = rows_of(self.zero, part).unsqueeze(2)
        if self.spec.weight_bits < 8:
            return (codes.view(torch.int8) - zero.view(torch.int8)).to(dtype)
        return codes.to(dtype) - zero.to(dtype)

    def parts(self) -> Iterator[slice]:
        """Rows that are unpacked at once, in order."""
        step = max(1, _UNPACKED_AT_ONCE // self.in_features)
        return (slice(start, start + step) for start in range(0, self.out_features, step))

    def weight_rows(self, part: slice, dtype: torch.dtype) -> Tensor:
        """Rows `part` of the dequantized weight in the basis of the transformed input, [rows, in]; not cached."""
        return self._unscaled(part, dtype).mul_(rows_of(self.scale, part).unsqueeze(2)).flatten(1)

    def _from_book(self, codes: Tensor, part: slice, dtype: torch.dtype) -> Tensor:
        """The values of codes [rows, groups, width] in rows `part`, times the scales of blocks where there are any."""
        values = self.book.to(dtype)[codes.int()]
        if self.spec.number_format is None:
            return values
        blocks = block_values(rows_of(self.block_scale, part), self.spec.number_format, dtype)
        return (values.view(*blocks.shape, -1) * blocks.unsqueeze(2)).view_as(values)

    def weight_as(self, dtype: torch.dtype) -> Tensor:
        """The dequantized weight in the basis of the transformed input, [out, in]; cached."""
        weight = self._weight
        if weight is None or weight.device != self.codes.device or weight.dtype != dtype:
            unscaled = self._unscaled(slice(0, self.out_features), torch.float32)
            weight = self._weight = (unscaled * self.scale.float().unsqueeze(2)).flatten(1).to(dtype)
        return weight

    def dequantized(self, dtype: torch.dtype) -> nn.Linear:
        """A plain linear with the same weight in `dtype`, low-rank branch included, for the untransformed input.

        It shifts no input. What a shift corrects of the weight's rounding goes into the bias, if there is one: the mean
        over the steps of the policy.
        """
        weight = self.weight_as(torch.float32)
        if self.spec.rank:
            weight = weight + self.up.float() @ self.down.float()
        weight = self.transform_back(weight)
        with torch.device("meta"):
            plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        plain.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        if self.bias is not None:
            plain.bias = self.bias
        if self.bias is not None and self.spec.shift_groups:
            corrections = self.shift_output - self.shift.float() @ weight.T
            mean = corrections[self.shift_group.long()].mean(0)
            plain.bias = nn.Parameter((self.bias.float() + mean).to(self.bias.dtype), requires_grad=False)
        self.drop_cache()
        return plain

    def permute_and_smooth(self, x: Tensor) -> Tensor:
        """An input [..., in] less the step's shift, its channels in the layer's order, times the smoothing vector."""
        if self.spec.shift_groups:
            x = x - self.current_shift.to(x.dtype)
        if self.spec.permuted:
            x = x.index_select(-1, self.order)
        if self.spec.smoothed:
            x = x * self.smooth.to(x.dtype)
        return x

    def rotation(self, x: Tensor) -> Tensor:
        """The rotation's block [block, block] in the dtype and on the device of `x`; cached."""
        rotation = self._rotation
        if rotation is None or rotation.device != x.device or rotation.dtype != x.dtype:
            rotation = self.spec.rotation(dtype=x.dtype, device=x.device)
            if not torch.compiler.is_compiling():
                self._rotation = rotation
        return rotation

    def transform(self, x: Tensor) -> Tensor:
        """An input [..., in] shifted, permuted, smoothed and rotated: in the basis in which it is rounded."""
        x = self.permute_and_smooth(x)
        if self.spec.dual:
            return rotate_twice(x, self.rotations.to(x.dtype), self.between)
        return rotate(x, self.rotation(x)) if self.spec.block > 1 else x

    def transform_back(self, x: Tensor) -> Tensor:
        """The transpose of `transform`: from rows [..., in] of the weight, or a gradient, in that basis to those of the
        untransformed input."""
        if self.spec.dual:
            x = rotate_back(x, self.rotations.to(x.dtype), self.between)
        elif self.spec.block > 1:
            x = rotate(x, self.rotation(x))  # symmetric: its transpose is itself
        if self.spec.smoothed:
            x = x * self.smooth.to(x.dtype)
        if self.spec.permuted:
            x = torch.empty_like(x).index_copy_(-1, self.order.long(), x)
        return x

    def _round(self, x: Tensor, *, as_codes: bool) -> tuple[Tensor, Tensor | None]:
        """A transformed input [..., in] at the step's bits: (values, None), or with `as_codes` (codes, scale) where a
        token has one scale and every step rounds."""
        compiling = torch.compiler.is_compiling()
        if self.rounds is False or (not compiling and self.bits >= WEIGHT_ONLY):
            return x, None
        qmax: Tensor | float = self.qmax if compiling else 2.0**self.bits - 1
        sometimes = compiling and self.rounds is None
        spec = self.spec
        if spec.regions:
            values = fake_quantize_regions(x, qmax, self.current_scale)
        elif spec.time_groups:
            codes = static_codes(x, qmax, self.current_scale, self.current_zero)
            if as_codes and not sometimes:
                return codes, self.current_scale
            values = (codes.float() * self.current_scale).to(x.dtype)
        elif spec.number_format:
            values = fake_quantize_floats(x, spec.number_format) if self.bits < WEIGHT_ONLY else x
        elif spec.activation_codebook:
            values = x
            if self.bits < WEIGHT_ONLY:
                values = fake_quantize_to_codebook(x, gaussian_codebook(self.bits).to(x.device))
        elif spec.clip_bins:
            symmetric, group = spec.symmetric_activations, spec.activation_group
            values = fake_quantize_clipped(x, qmax, self.current_clip, symmetric=symmetric, group=group)
        elif as_codes and not spec.activation_group and not sometimes:
            return token_codes(x, qmax, symmetric=spec.symmetric_activations)
        else:
            values = fake_quantize_tokens(x, qmax, symmetric=spec.symmetric_activations, group=spec.activation_group)
        return (torch.where(self.qmax < 2.0**WEIGHT_ONLY - 1, values, x) if sometimes else values), None

    def _round_rows(self, x: Tensor, *, as_codes: bool) -> RoundedInput:
        transformed = self.transform(x)
        values, scale = self._round(transformed, as_codes=as_codes)
        return RoundedInput(values, scale, transformed if self.spec.rank else None)

    def _rounded_input(self, x: Tensor, *, as_codes: bool) -> RoundedInput:
        """The input [..., in], transformed and rounded; from `shared` if another layer has done it."""

        def compute() -> RoundedInput:
            return round_by_rows(lambda rows: self._round_rows(rows, as_codes=as_codes), x)

        if self.shared is None or self.has_own_input or torch.compiler.is_compiling() or x.is_inference():
            return compute()
        return self.shared.rounded(x, (RoundedInput, self._bits, self._rounding, as_codes), compute)

    def forward(self, x: Tensor) -> Tensor:
        """The output [..., out] for an input [..., in], in the dtype of `x`.

        The gradient with respect to `x` is that of the dequantized layer (`straight_through`).
        """
        if x.requires_grad and torch.is_grad_enabled():
            output: Tensor = StraightThrough.apply(x, self.bias, self)  # type: ignore[no-untyped-call]
            return output
        return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        """The output, as the layer's execution computes it."""
        out = self._computed(x)
        return out + self.current_output.to(out.dtype) if self.spec.shift_groups else out

    def _computed(self, x: Tensor) -> Tensor:
        """The output without what makes up for a shift."""
        if self.execution == "simulate":
            rounded = self._rounded_input(x, as_codes=False)
            out = linear(rounded.values, self.weight_as(x.dtype), self.bias)
            return out if rounded.unrounded is None else out + self.low_rank_branch(rounded.unrounded)
        if self.execution == "packed":
            return self._packed(x)
        return self._reference(x)

    def low_rank_branch(self, x: Tensor) -> Tensor:
        """What the low-rank branch adds to the output, [..., out], for a transformed input [..., in]."""
        return functional.linear(functional.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))

    def _reference(self, x: Tensor) -> Tensor:
        """The definition of the output: float32 throughout, nothing cached."""
        groups = self.scale.shape[1]
        codes = unpack(self.codes, self.spec.weight_bits, self.in_features).unflatten(1, (groups, -1))
        scale = self.scale.float().unsqueeze(2)
        if self.spec.codebook:
            weight = self._from_book(codes, slice(0, self.out_features), torch.float32) * scale
        else:
            weight = dequantize(codes, scale, self.zero.float().unsqueeze(2))
        transformed = self.transform(x.float())
        out = functional.linear(self._round(transformed, as_codes=False)[0], weight.flatten(1))
        if self.spec.rank:
            out = out + self.low_rank_branch(transformed)
        return (out if self.bias is None else out + self.bias.float()).to(x.dtype)

    def _packed(self, x: Tensor) -> Tensor:
        """Unpacked rows times the rounded input, as in `simulate`; or codes times codes, scaled last (_SCALED_LAST)."""
        spec, dtype, kernels = self.spec, x.dtype, self.gpu_kernels
        if kernels is not None and x.is_cuda and not torch.compiler.is_compiling() and kernels.takes(self):
            return kernels.packed_linear(self, x)
        scaled_last = self.scale.shape[1] == 1 and not spec.codebook and dtype == _SCALED_LAST
        rounded = self._rounded_input(x, as_codes=scaled_last)
        bias = None if self.bias is None else self.bias.to(dtype)
        parts = []
        for part in self.parts():
            if scaled_last:
                rows, scale = self._unscaled(part, dtype).flatten(1), rows_of(self.scale, part).flatten()
                parts.append(functional.linear(rounded.values, rows).mul_(scale))
            else:
                own_bias = None if bias is None else rows_of(bias, part)
                parts.append(linear(rounded.values, self.weight_rows(part, dtype), own_bias))
        out = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        if rounded.scale is not None:
            out = out.mul_(rounded.scale.to(dtype))
        if scaled_last and bias is not None:
            out = out.add_(bias)
        return out if rounded.unrounded is None else out.add_(self.low_rank_branch(rounded.unrounded))

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, {self.spec}, execution={self.execution}"


def use_gpu_kernels(kernels: GpuKernels | None) -> None:
    """Have every layer compute packed execution on a GPU with `kernels`; None: with torch's own operations."""
    QuantizedLinear.gpu_kernels = kernels
