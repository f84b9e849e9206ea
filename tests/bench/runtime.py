"""What a quantized linear costs against the bf16 one: `python -m tests.bench.runtime [--model RUN/model]`.

At FLUX's shapes (4608 tokens; 3072 x 3072 and 3072 x 12288), bf16, two threads (or `--device cuda`), it prints the
time of every execution over that of `nn.Linear`, on a CPU beside torchao's int8 dynamic and SDNQ where installed (`pip
install torchao sdnq`).
With --model the same of a whole pipeline call: a quantized folder against its full-precision --base, in float32; with
--no-linears that alone.
With --memory the resident memory of one loaded FLUX block of full size, packed, over the size of its file.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from adatsq_pipe.stages.numerics.weight_grid import weight_grid
from adatsq_pipe.stages.runtime.linear import EXECUTIONS, QuantizedLinear
from adatsq_pipe.stages.runtime.spec import LayerSpec

TOKENS = 4608
PLAIN = "plain"
SHAPES = ((3072, 3072), (3072, 12288), (12288, 3072))


def times(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, `repeats` of them, called in turn so that a slow moment of the machine meets them all."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            if repeat:
                taken[name].append(time.perf_counter() - start)
    return taken


def medians(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each of `times`."""
    return {name: statistics.median(taken) for name, taken in times(works, repeats).items()}


def quantized(plain: nn.Linear, bits: int, *, group: int = 0) -> QuantizedLinear:
    """Rounded to nearest behind a rotation of 128, activations at as many bits."""
    spec = LayerSpec(weight_bits=bits, group=group, block=128, symmetric_activations=False)
    layer = QuantizedLinear(plain.in_features, plain.out_features, spec=spec, steps=1, bias=True, dtype=torch.bfloat16)
    weight = plain.weight.detach().float().cpu()
    grid = weight_grid(weight, bits=bits, group=group, symmetric=False, clip=False)
    scale, zero = grid.columns(plain.in_features)
    codes = (torch.round(weight / scale) + zero).clamp_(0, grid.qmax).to(torch.uint8)
    layer.set_tensors({"codes": codes, "scale": grid.scale_OG, "zero": grid.zero_OG})
    layer.bits = bits
    return layer


def others(plain: nn.Linear) -> dict[str, nn.Module]:
    """The same linear as other libraries quantize it, where they are installed."""
    found: dict[str, nn.Module] = {}
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        holder = nn.Sequential(nn.Linear(plain.in_features, plain.out_features, dtype=torch.bfloat16))
        quantize_(holder, Int8DynamicActivationInt8WeightConfig())
        found["torchao int8 dynamic"] = holder
    except ImportError:
        click.echo("torchao is not installed: left out")
    try:
        from sdnq import sdnq_post_load_quant

        holder = nn.Sequential(nn.Linear(plain.in_features, plain.out_features, dtype=torch.bfloat16))
        found["SDNQ uint4 weights"] = sdnq_post_load_quant(holder, weights_dtype="uint4", torch_dtype=torch.bfloat16)
    except ImportError:
        click.echo("sdnq is not installed: left out")
    return found


@torch.inference_mode()
def linears(repeats: int, device: str) -> None:
    """Every shape and kind, over `nn.Linear`."""
    for width, out in SHAPES:
        plain = nn.Linear(width, out, dtype=torch.bfloat16, device=device)
        x = torch.randn(TOKENS, width, dtype=torch.bfloat16, device=device)
        works: dict[str, Callable[[], Any]] = {PLAIN: lambda: plain(x)}  # noqa: B023
        smaller = {}
        for bits, group in ((4, 0), (3, 0), (4, 64)):
            kind = f"W{bits}A{bits}{f' g{group}' if group else ''}"
            for execution in EXECUTIONS:
                layer = quantized(plain, bits, group=group).to(device)
                layer.execution = execution
                works[f"{kind} {execution}"] = lambda layer=layer: layer(x)  # type: ignore[misc]  # noqa: B023
            smaller[kind] = 2 * width * out / sum(tensor.nbytes for tensor in layer.state_dict().values())
        beside = others(plain) if device == "cpu" else {}
        works |= {name: lambda module=module: module(x) for name, module in beside.items()}  # type: ignore[misc]  # noqa: B023
        taken = medians(works, repeats)
        click.echo(f"{TOKENS} x {width} x {out}: bf16 nn.Linear {1000 * taken[PLAIN]:.3g} ms; time over it")
        for name in list(works)[1:]:
            kind, _, execution = name.rpartition(" ")
            size = f"   ({smaller[kind]:.2f}x smaller)" if execution == "packed" and kind in smaller else ""
            click.echo(f"  {name:24} {taken[name] / taken[PLAIN]:.2f}{size}")


_LOADER = """
import gc, sys, psutil, torch
import adatsq_pipe.stages.runtime as runtime
from diffusers import FluxTransformer2DModel
me = psutil.Process()
before = me.memory_full_info().rss
model = FluxTransformer2DModel.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
runtime.execute(model, "packed")
with torch.no_grad():
    for layer in runtime.model.quantized_layers(model).values():
        layer(torch.randn(1, 64, layer.in_features, dtype=torch.bfloat16))
gc.collect()
print(me.memory_full_info().rss - before)
"""


def memory() -> None:
    """One single-stream block of FLUX's width, 4-bit codes, loaded and used in a process of its own."""
    from diffusers import FluxTransformer2DModel
    from safetensors.torch import save_file

    from adatsq_pipe.stages.architecture.layers import quantizable_linears
    from adatsq_pipe.stages.runtime.spec import FORMAT

    spec = LayerSpec(weight_bits=4, group=0, block=128, symmetric_activations=False)
    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=0, num_single_layers=2, guidance_embeds=True)
    layers = quantizable_linears(model)
    tensors = {n: torch.zeros(p.shape, dtype=torch.bfloat16) for n, p in model.state_dict().items()}
    for name, linear in layers.items():
        del tensors[f"{name}.weight"]
        for part, (shape, dtype) in spec.tensors(linear.in_features, linear.out_features, 50).items():
            tensors[f"{name}.{part}"] = torch.ones(shape, dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        model.register_to_config(
            quantization_config={
                "quant_method": "adatsq",
                "format": FORMAT,
                "layers": {name: spec.plain() for name in layers},
                "timesteps": [float(t) for t in range(50)],
            }
        )
        model.save_config(folder)
        path = Path(folder) / "diffusion_pytorch_model.safetensors"
        save_file(tensors, path, metadata={"format": "pt"})
        size = path.stat().st_size
        done = subprocess.run([sys.executable, "-c", _LOADER, folder], check=True, capture_output=True, text=True)
        click.echo(
            f"two FLUX single blocks, W4 packed: file {size / 2**20:.0f} MiB, resident after use over it "
            f"{int(done.stdout.split()[-1]) / size:.2f}"
        )


@click.command()
@click.option("--repeats", default=5, show_default=True)
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="A quantized pipeline folder.")
@click.option("--base", type=click.Path(path_type=Path, exists=True), help="Its full-precision folder.")
@click.option("--linears/--no-linears", "of_linears", default=True, help="Whether to time linears.")
@click.option("--memory", "weigh", is_flag=True, help="Resident memory, too.")
@click.option("--threads", default=2, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda, for the linears.")
def main(
    repeats: int, model: Path | None, base: Path | None, of_linears: bool, weigh: bool, threads: int, device: str
) -> None:
    """Print the ratios."""
    torch.set_num_threads(threads)
    if of_linears:
        linears(repeats, device)
    if model and base:
        pipelines(model, base, repeats)
    if weigh:
        memory()


def pipelines(model: Path, base: Path, repeats: int) -> None:
    """A whole call of the pipeline, quantized over full precision."""
    import json

    from diffusers import DiffusionPipeline

    import adatsq_pipe.stages.runtime as runtime

    call = json.loads((model / "sampling.json").read_text())["call"]

    def draw(folder: Path, execution: str = "") -> Callable[[], Any]:
        pipe = DiffusionPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        if execution:
            runtime.execute(pipe.transformer, execution)
        return lambda: pipe(["a red circle"] * 4, generator=torch.Generator().manual_seed(0), **call)

    taken = times({PLAIN: draw(base), **{name: draw(model, name) for name in EXECUTIONS}}, repeats)
    plain = taken.pop(PLAIN)
    click.echo(f"{base.name}, 4 pictures in float32: {statistics.median(plain):.2f} s; median and least time over it")
    for execution, found in taken.items():
        middle, least = statistics.median(found) / statistics.median(plain), min(found) / min(plain)
        click.echo(f"  {execution:24} {middle:.2f} {least:.2f}")


if __name__ == "__main__":
    main()
