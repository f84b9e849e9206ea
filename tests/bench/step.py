"""One denoiser call of a full-size FLUX.1 on a GPU: `python -m tests.bench.step`.

FLUX.1-dev's own config (12 B parameters; random weights, so this is about cost and nothing else), one picture of 1024 x
1024 (4,096 tokens) with 512 tokens of text, bfloat16. Prints the time of a call, the memory that the model takes and
the most that was allocated: full precision, then with the linears of its blocks at W4A4 and W3A3, packed and simulated,
behind rotations of 128.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import click
import torch
from diffusers import FluxTransformer2DModel

from adatsq_pipe.stages.architecture.layers import quantizable_linears
from adatsq_pipe.stages.runtime import execute
from adatsq_pipe.stages.runtime.model import quantized_layers, replace_linears
from adatsq_pipe.stages.runtime.spec import LayerSpec

TEXT = 512


def inputs(side: int) -> dict[str, Any]:
    """What the pipeline would call it with, for one picture of `side` x `side` tokens."""
    place = torch.zeros(side, side, 3, device="cuda")
    place[..., 1] += torch.arange(side, device="cuda")[:, None]
    place[..., 2] += torch.arange(side, device="cuda")[None, :]
    like = {"dtype": torch.bfloat16, "device": "cuda"}
    return {
        "hidden_states": torch.randn(1, side * side, 64, **like),
        "encoder_hidden_states": torch.randn(1, TEXT, 4096, **like),
        "pooled_projections": torch.randn(1, 768, **like),
        "timestep": torch.full((1,), 0.5, **like),
        "guidance": torch.full((1,), 3.5, device="cuda"),
        "img_ids": place.flatten(0, 1),
        "txt_ids": torch.zeros(TEXT, 3, device="cuda"),
    }


@torch.no_grad()
def measured(what: str, model: Any, asked: dict[str, Any], repeats: int, base: float = 0) -> float:
    """Seconds of a call, the median; prints them."""
    taken = []
    model(**asked)
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats):
        start = time.perf_counter()
        model(**asked)
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    seconds, peak = statistics.median(taken), torch.cuda.max_memory_allocated()
    over = f" ({seconds / base:.2f} of full precision)" if base else ""
    click.echo(f"{what:18} {1000 * seconds:7.1f} ms{over}; holds {held / 1e9:.2f} GB, at most {peak / 1e9:.2f} GB")
    return seconds


@torch.no_grad()
def quantized(model: Any, bits: int) -> None:
    """Put quantized linears of random codes in the places of those of the blocks, or new codes into them."""
    spec = LayerSpec(weight_bits=bits, group=0, block=128, symmetric_activations=False)
    for layer in replace_linears(model, dict.fromkeys(quantizable_linears(model), spec), steps=1).values():
        layer.codes.copy_(torch.randint(0, 256, layer.codes.shape, dtype=torch.uint8, device="cuda"))
        layer.scale.fill_(0.02 / 2 ** (bits - 2))
        layer.zero.fill_(2 ** (bits - 1))
        layer.bits = bits


@click.command()
@click.option("--side", default=64, show_default=True, help="Tokens along a picture's edge.")
@click.option("--blocks", default=0, help="So many double and single blocks in the place of 19 and 38, for a trial.")
@click.option("--repeats", default=5, show_default=True)
def main(side: int, blocks: int, repeats: int) -> None:
    """Print time and memory."""
    few = {"num_layers": blocks, "num_single_layers": blocks} if blocks else {}
    asked = inputs(side)
    full = 0.0
    for bits in (4, 3):
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda"):
            model = FluxTransformer2DModel(guidance_embeds=True, **few).eval().requires_grad_(False)
        torch.set_default_dtype(torch.float32)
        if not full:
            count = sum(parameter.numel() for parameter in model.parameters())
            click.echo(f"{count / 1e9:.2f} B parameters, {side * side} + {TEXT} tokens, {torch.cuda.get_device_name()}")
            full = measured("bfloat16", model, asked, repeats)
        quantized(model, bits)
        for execution in ("packed", "simulate"):
            execute(model, execution)
            measured(f"W{bits}A{bits} {execution}", model, asked, repeats, full)
        assert quantized_layers(model)
        del model
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
