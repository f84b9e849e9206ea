"""Quantized folders without a run: round to nearest, a policy that changes at every step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from adatsq_pipe.stages.architecture.layers import quantizable_linears
from adatsq_pipe.stages.numerics.grid import quantize as quantize_to_grid
from adatsq_pipe.stages.numerics.packing import pack
from adatsq_pipe.stages.numerics.transform import block_size, hadamard, rotate
from adatsq_pipe.stages.numerics.weight_grid import weight_grid
from adatsq_pipe.stages.runtime.spec import FORMAT, LayerSpec
from adatsq_pipe.storage.checkpoint import stored_tensors, write_pipeline


def quantize(
    source: Path,
    target: Path,
    timesteps: list[float],
    *,
    widths: Sequence[int] = (4,),
    group: int = 0,
    block: int = 16,
    rank: int = 0,
    smoothed: bool = False,
    permuted: bool = False,
) -> Path:
    """Write the pipeline at `source` to `target`, its blocks' linears at `widths` in turn, the rest in bfloat16.

    `rank`, `smoothed` and `permuted` add these parts with random values: the weight is then another.
    """
    random = torch.Generator().manual_seed(0)
    pipe = DiffusionPipeline.from_pretrained(source)
    tensors: dict[str, Tensor] = {name: tensor.load().bfloat16() for name, tensor in stored_tensors(source).items()}
    layers: dict[str, Any] = {}
    for bits, (name, linear) in zip(cycle(widths), quantizable_linears(pipe.transformer).items(), strict=False):
        spec = LayerSpec(
            weight_bits=bits, group=group, block=block_size(linear.in_features, block), symmetric_activations=False,
            rank=rank, smoothed=smoothed, permuted=permuted,
        )  # fmt: skip
        weight = rotate(linear.weight.detach().float(), hadamard(spec.block, dtype=torch.float32))
        grid = weight_grid(weight, bits=bits, group=group, symmetric=False, clip=False)
        scale = grid.scale_OG.bfloat16()
        every = scale.float().repeat_interleave(weight.shape[1] // scale.shape[1], 1)
        zero = grid.zero_OG.repeat_interleave(weight.shape[1] // scale.shape[1], 1)
        codes = quantize_to_grid(weight, every, zero, grid.qmax).to(torch.uint8)
        del tensors[f"{name}.weight"]
        tensors |= {
            f"{name}.codes": pack(codes, bits),
            f"{name}.scale": scale,
            f"{name}.zero": grid.zero_OG.to(torch.uint8),
            f"{name}.policy": torch.tensor([(3, 4, 8)[t % 3] for t in range(len(timesteps))], dtype=torch.uint8),
        }
        width, out = linear.in_features, linear.out_features
        if rank:
            tensors[f"{name}.down"] = (torch.randn(rank, width, generator=random) / width**0.5).bfloat16()
            tensors[f"{name}.up"] = (torch.randn(out, rank, generator=random) / 4).bfloat16()
        if smoothed:
            tensors[f"{name}.smooth"] = (torch.rand(width, generator=random) + 0.5).bfloat16()
        if permuted:
            tensors[f"{name}.order"] = torch.randperm(width, generator=random).int()
        layers[name] = spec.plain()
    config = {"quant_method": "adatsq", "format": FORMAT, "layers": layers, "timesteps": timesteps}
    target.mkdir(parents=True)
    write_pipeline(source, target, tensors=tensors, quantization_config=config, card="# made by a test\n")
    return target
