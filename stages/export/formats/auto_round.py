"""W4A16 (2, 3 or 8 bits too) in auto-round's GPTQ packing: stock diffusers loads it where auto-round is installed.

Weights only: activations are not rounded. A code of ours is a code there, so nothing is quantized again; what has no
place in that packing is refused. Eight codes of 4 bits (16 of 2, 4 of 8) fill an int32 along the inputs, and zero
points likewise along the outputs; three bits are a stream of bits over 32 codes in three int32.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.export.formats._formats import packed_encoders, transformer_of, write_plain_encoders
from adatsq_pipe.stages.numerics.packing import unpack
from adatsq_pipe.stages.runtime.linear import QuantizedLinear
from adatsq_pipe.stages.runtime.model import quantized_layers
from adatsq_pipe.storage.checkpoint import write_pipeline

BITS = (2, 3, 4, 8)
_WORD = 32
_CARD = """# W{bits}A16, auto-round packing

The weights of a model that adatsq-pipe quantized; activations are not rounded. Loads in stock diffusers:

```python
from diffusers import DiffusionPipeline  # needs: pip install auto-round

pipe = DiffusionPipeline.from_pretrained("this folder", dtype=torch.bfloat16)
```
"""


def export(source: Path, out: Path) -> str:
    model = transformer_of(source)
    layers = quantized_layers(model)
    for name, layer in layers.items():
        if reason := refusal(layer):
            raise StageError(f"layer {name} {reason}")
    unfit = {n: layer for n, layer in layers.items() if layer.in_features % _WORD or layer.out_features % _WORD}
    if len(unfit) == len(layers):
        raise StageError(f"no layer is of a multiple of {_WORD} inputs and outputs, which the format needs")
    tensors = dict(model.state_dict())
    for name, layer in layers.items():
        for part in layer.spec.tensors(layer.in_features, layer.out_features, layer.policy.numel()):
            del tensors[f"{name}.{part}"]
        if name in unfit:
            tensors[f"{name}.weight"] = layer.dequantized(torch.bfloat16).weight
        else:
            tensors |= {f"{name}.{part}": tensor for part, tensor in packed(layer).items()}
    layers = {name: layer for name, layer in layers.items() if name not in unfit}
    kinds = {name: (layer.spec.weight_bits, layer.spec.group or -1) for name, layer in layers.items()}
    (bits, group), _ = Counter(kinds.values()).most_common(1)[0]
    blocks = sorted({name.partition(".")[0] for name in layers})
    config = {
        "quant_method": "auto-round",
        "packing_format": "auto_round",
        "backend": "auto",
        "data_type": "int",
        "bits": bits,
        "group_size": group,
        "sym": False,
        "block_name_to_quantize": ",".join(blocks),
        "extra_config": {n: {"bits": b, "group_size": g} for n, (b, g) in kinds.items() if (b, g) != (bits, group)}
        | {n: {"bits": 16} for n in [*unfit, *_plain_linears(model, blocks)]},
    }
    left = f"{len(unfit)} layers are left at 16 bits: their shapes are no multiples of {_WORD}"
    card = _CARD.format(bits=bits) + (f"\n{left}: {', '.join(unfit)}.\n" if unfit else "")
    encoders = packed_encoders(source)
    write_pipeline(source, out, tensors=tensors, quantization_config=config, card=card, others=encoders)
    message = f"W{bits}A16, {len(layers)} layers; load it with stock diffusers and auto-round"
    message += write_plain_encoders(source, out, encoders)
    return message + (f". {left}" if unfit else "")


def _plain_linears(model: nn.Module, blocks: list[str]) -> list[str]:
    inside = tuple(f"{block}." for block in blocks)
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith(inside)]


def refusal(layer: QuantizedLinear) -> str:
    """Why the layer has no place in the packing; empty if it has."""
    spec = layer.spec
    if spec.block > 1 or spec.permuted or spec.smoothed:
        return (
            "keeps its codes in a basis that its input is brought into first, which that format cannot say; "
            'run again with --set recipe.transform="none" (the capture is kept)'
        )
    if spec.shift_groups:
        return "shifts its input by the timestep, which that format cannot say; use --format dequantized"
    if spec.rank or spec.codebook:
        return "has a low-rank branch or a codebook, which that format has no place for; use --format dequantized"
    if spec.weight_bits not in BITS:
        return (
            f"has {spec.weight_bits}-bit weights; the format takes {', '.join(map(str, BITS))}; run again with one of "
            "them for all layers: --set recipe.weight_budget=0 --set recipe.weight_bits=4 (the capture is kept)"
        )
    if not layer.scale.half().to(layer.scale.dtype).equal(layer.scale):
        return "has scales that float16, in which the format holds them, cannot hold; use --format dequantized"
    return ""


def packed(layer: QuantizedLinear) -> dict[str, Tensor]:
    """int32 `qweight` [in * bits / 32, out] and `qzeros` [groups, out * bits / 32], float16 `scales` [groups, out]."""
    bits = layer.spec.weight_bits
    codes = unpack(layer.codes, bits, layer.in_features)
    return {
        "qweight": _words(codes, bits).T.contiguous(),
        "qzeros": _words(layer.zero.T, bits),
        "scales": layer.scale.T.half().contiguous(),
    }


def _words(codes_RC: Tensor, bits: int) -> Tensor:
    """Rows of codes as a stream of bits in int32 words, least significant bit first: int32 [R, C * bits / 32]."""
    stream = (codes_RC.long().unsqueeze(-1) >> torch.arange(bits)) & 1
    words = (stream.flatten(1).unflatten(1, (-1, _WORD)) << torch.arange(_WORD)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
