"""Quantized linears of random parts, and their output by hand: float64, one token and one scale at a time."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from adatsq_pipe.stages.numerics.lloyd import gaussian_codebook
from adatsq_pipe.stages.numerics.transform import hadamard
from adatsq_pipe.stages.runtime.linear import QuantizedLinear
from adatsq_pipe.stages.runtime.spec import LayerSpec

POLICY = (3, 16, 8)
"""Bits of the three steps of every layer here."""

PARTS: list[dict[str, Any]] = [
    {},
    {"group": 8},
    {"block": 8},
    {"block": 16, "regular": True},
    {"block": 8, "dual": True, "permuted": True, "smoothed": True},
    {"symmetric_activations": True},
    {"activation_group": 8},
    {"permuted": True, "block": 8},
    {"smoothed": True},
    {"rank": 2, "smoothed": True, "block": 4},
    {"codebook": True, "permuted": True, "block": 16},
    {"time_groups": 2},
    {"time_groups": 2, "regions": True, "smoothed": True},
    {"activation_codebook": True, "codebook": True},
    {"number_format": "nvfp4", "codebook": True, "weight_bits": 4},
    {"shift_groups": 2},
    {"shift_groups": 2, "permuted": True, "smoothed": True, "block": 8, "rank": 2, "activation_group": 8},
    {"shift_groups": 2, "dual": True, "block": 8, "smoothed": True},
    {"group": 16, "block": 16, "smoothed": True, "rank": 1, "permuted": True, "activation_group": 8},
]
"""Every part of a LayerSpec, alone and together, for layers of a multiple of 16 inputs."""


def spec_with(**parts: Any) -> LayerSpec:
    """4-bit weights and asymmetric activations, unless `parts` say otherwise."""
    return LayerSpec(**({"weight_bits": 4, "group": 0, "block": 1, "symmetric_activations": False} | parts))


def random_tensors(spec: LayerSpec, width: int, out: int, seed: int) -> dict[str, Tensor]:
    """What `QuantizedLinear.set_tensors` takes: every tensor of `spec`, random, codes not packed."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (shape, dtype) in spec.tensors(width, out, len(POLICY)).items():
        if dtype == torch.uint8:
            shape = (out, width) if name == "codes" else shape
            tensors[name] = torch.randint(0, 2**spec.weight_bits, shape, generator=random).to(dtype)
        else:
            tensors[name] = (torch.rand(shape, generator=random) + 0.25).to(dtype)
    tensors["policy"] = torch.tensor(POLICY, dtype=torch.uint8)
    if spec.codebook:
        tensors["book"] = torch.randn(2**spec.weight_bits, generator=random).sort().values
    if spec.number_format == "nvfp4":
        tensors["block_scale"] += 0x30  # E4M3 of .5 to 2
    if spec.permuted:
        tensors["order"] = torch.randperm(width, generator=random).int()
    if spec.shift_groups:
        tensors["shift_group"] = torch.tensor([0, 1, 1], dtype=torch.uint8)
        tensors["shift"] = (2 * tensors["shift"].float() - 1).bfloat16()
    if spec.dual:
        tensors["rotations"] = torch.linalg.qr(torch.randn(2, spec.block, spec.block, generator=random)).Q
        tensors["between"] = torch.randperm(width, generator=random).int()
    if spec.time_groups:
        tensors["time_group"] = torch.tensor([0, 1, 1], dtype=torch.uint8)
        tensors["step_scale"] = torch.linspace(0.2, 0.4, spec.time_groups)
        tensors["step_zero"] = torch.arange(2.0, 2.0 + spec.time_groups)
    return tensors


def layer_of(spec: LayerSpec, tensors: dict[str, Tensor]) -> QuantizedLinear:
    """A layer that holds `tensors`, with a random bias, float32."""
    out, width = tensors["codes"].shape
    layer = QuantizedLinear(width, out, spec=spec, steps=len(POLICY), bias=True, dtype=torch.float32)
    layer.set_tensors(tensors)
    assert layer.bias is not None
    layer.bias.data.copy_(torch.randn(out, generator=torch.Generator().manual_seed(out)))
    layer.requires_grad_(False)
    return layer


def random_layer(spec: LayerSpec, width: int, out: int, seed: int) -> QuantizedLinear:
    """`layer_of` random tensors."""
    return layer_of(spec, random_tensors(spec, width, out, seed))


def weight_by_hand(spec: LayerSpec, tensors: dict[str, Tensor]) -> Tensor:
    """float64 [out, in]: the weight that the codes stand for, without the low-rank branch."""
    out, width = tensors["codes"].shape
    weight = torch.zeros(out, width, dtype=torch.float64)
    for o in range(out):
        for i in range(width):
            code, group = int(tensors["codes"][o, i]), i // (spec.group or width)
            value = float(tensors["book"][code]) if spec.codebook else code - float(tensors["zero"][o, group])
            if spec.number_format == "nvfp4":
                byte = int(tensors["block_scale"][o, i // 16])
                value *= (1 + byte % 8 / 8) * 2.0 ** (byte // 8 - 7)
            weight[o, i] = value * float(tensors["scale"][o, group])
    return weight


def transformed_by_hand(spec: LayerSpec, tensors: dict[str, Tensor], x_NI: Tensor, *, group: int = 0) -> Tensor:
    """float64 [N, in]: the input shifted as in `group` of timesteps, permuted, smoothed and rotated."""
    x, width = x_NI.double(), x_NI.shape[1]
    if spec.shift_groups:
        x = x - tensors["shift"][group].double()
    if spec.permuted:
        x = torch.stack([x[:, int(channel)] for channel in tensors["order"]], 1)
    if spec.smoothed:
        x = x * tensors["smooth"].double()
    if spec.dual:
        first, second = (torch.block_diag(*[turn] * (width // spec.block)) for turn in tensors["rotations"].double())
        x = x @ first
        return torch.stack([x[:, int(channel)] for channel in tensors["between"]], 1) @ second
    turn = hadamard(spec.block, dtype=torch.float64)
    if spec.regular:
        turn = torch.ones(1, 1, dtype=torch.float64)
        while len(turn) < spec.block:
            turn = torch.cat(
                [torch.cat([-turn / 2 if i + j == 3 else turn / 2 for j in range(4)], 1) for i in range(4)]
            )
    return x @ torch.block_diag(*[turn] * (width // spec.block))


def nvfp4_by_hand(block: Tensor, row: Tensor) -> Tensor:
    """A block of 16 values of a row as E2M1 times the nearest E4M3 scale times a power of two of the whole row."""
    whole = float(row.abs().max()) / (6 * 448)
    power = 2.0 ** math.ceil(math.log2(whole)) if whole else 1.0
    e4m3 = [mantissa / 8 * 2.0**-6 for mantissa in range(8)]
    e4m3 += [(1 + mantissa / 8) * 2.0 ** (exponent - 7) for exponent in range(1, 16) for mantissa in range(8)][:-1]
    wanted = float(block.abs().max()) / 6 / power
    scale = min(e4m3, key=lambda value: abs(value - wanted)) * power
    levels = [sign * value for value in (0, 1, 2, 4, 0.5, 1.5, 3, 6) for sign in (1, -1)]
    return torch.tensor([min(levels, key=lambda k: abs(float(x) - k * scale)) * scale for x in block]).double()


def rounded_by_hand(spec: LayerSpec, tensors: dict[str, Tensor], x_NI: Tensor, *, bits: int, group: int = 0) -> Tensor:
    """float64 [N, in]: a transformed input rounded to `bits`; `group` is the group of timesteps."""
    rounded = x_NI.clone()
    if bits == 16:
        return rounded
    size = spec.activation_group or x_NI.shape[1]
    for n in range(len(rounded)):
        for first in range(0, x_NI.shape[1], size):
            part = x_NI[n, first : first + size]
            if spec.regions:
                half, scale = 2 ** (bits - 1), float(tensors["step_scale"][group])
                above = torch.clamp(torch.round(part / scale), 0, half - 1) * scale
                below = torch.clamp(torch.round(part / (0.17 / half)), -half, 0) * (0.17 / half)
                value = torch.where(part < 0, below, above)
            elif spec.time_groups:
                scale, zero = float(tensors["step_scale"][group]), float(tensors["step_zero"][group])
                value = (torch.clamp(torch.round(part / scale) + zero, 0, 2**bits - 1) - zero) * scale
            elif spec.number_format:
                value = torch.cat([nvfp4_by_hand(block, part) for block in part.split(16)])
            elif spec.activation_codebook:
                rms = float(part.square().mean().sqrt())
                book = gaussian_codebook(bits).double()
                value = torch.stack([book[(book * rms - v).abs().argmin()] for v in part]) * rms
            elif spec.symmetric_activations:
                scale = max(float(part.abs().max()) / (2 ** (bits - 1) - 1), 1e-12)
                value = torch.round(part / scale) * scale
            else:
                low, high = min(float(part.min()), 0), max(float(part.max()), 0)
                scale = max((high - low) / (2**bits - 1), 1e-12)
                zero = round(-low / scale)
                value = (torch.clamp(torch.round(part / scale) + zero, 0, 2**bits - 1) - zero) * scale
            rounded[n, first : first + size] = value
    return rounded


def output_by_hand(
    spec: LayerSpec, tensors: dict[str, Tensor], bias: Tensor, x_NI: Tensor, *, bits: int, group: int = 0
) -> Tensor:
    """float64 [N, out]: the layer's output for tokens `x_NI` at `bits`."""
    x = transformed_by_hand(spec, tensors, x_NI, group=group)
    out = rounded_by_hand(spec, tensors, x, bits=bits, group=group) @ weight_by_hand(spec, tensors).T
    if spec.rank:
        out = out + x @ tensors["down"].double().T @ tensors["up"].double().T
    if spec.shift_groups:
        out = out + tensors["shift_output"][group].double()
    return out + bias.double()
