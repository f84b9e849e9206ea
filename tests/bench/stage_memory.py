"""Main memory that single stages need at real sizes, on made-up units: `python -m tests.bench.stage_memory`.

- `assemble`: a denoiser of several shards is packed and written. Linears are 4096 x 4096, a shard has --shard MB.
- `clips`: clips are evaluated, drawn as noise without a model, and written as the report's pictures.
- `gram`: the Gram matrix of an input as wide as FLUX's widest is made, written and read.

Prints the most that the process held, beyond what it held before, over the size that matters. Linux only.
"""

from __future__ import annotations

import ctypes
import gc
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from adatsq_pipe.pipeline.page import images
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.resident import take_peak
from adatsq_pipe.stages.base.survey import LayerInfo, Survey
from adatsq_pipe.stages.calibration.hessian_worker import Hessian
from adatsq_pipe.stages.calibration.unit_keys import BlockKey
from adatsq_pipe.stages.evaluation import evaluate_worker, reference_worker
from adatsq_pipe.stages.evaluation.evaluate_worker import Evaluate
from adatsq_pipe.stages.evaluation.reference_worker import Reference
from adatsq_pipe.stages.export.assemble_worker import Assemble
from adatsq_pipe.stages.numerics import symmetric
from adatsq_pipe.storage import tensors, weights
from adatsq_pipe.storage.rundir import RunDir
from tests.support.made_context import made_context

MB = 10**6
WIDTH = 4096


def held(work: Callable[[], object]) -> int:
    """Bytes of main memory that `work` takes at most, beyond what the process held before it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else what was freed before is there to be used
    take_peak()
    before = take_peak()
    work()
    return take_peak() - before


@contextmanager
def made(**overrides: Any) -> Iterator[Context]:
    """A run directory with nothing in it, for as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        context = made_context(Path(folder) / "run", Path(folder) / "model", **overrides)
        RunDir.at(context.run).create()
        yield context


def write_survey(context: Context, layers: list[LayerInfo], steps: int) -> None:
    survey = Survey(
        layers=tuple(layers), unused=(), repeated=(), step_of_call=tuple(range(steps)),
        timesteps=tuple(1000.0 - step for step in range(steps)), parameters=sum(row.size for row in layers),
    )  # fmt: skip
    for unit, value in (("survey", survey.plain()), ("left", [])):
        context.manifest("capture").open_unit(unit)
        context.manifest("capture").commit(unit, value=value)


def layer(name: str, width: int, out: int) -> LayerInfo:
    return LayerInfo(name=name, in_features=width, out_features=out, role="tokens", input_of=name, macs=width * out)


def assembled(context: Context, *, linears: int, others: int) -> None:
    """What assemble reads: a source in bfloat16 with `others` further matrices, solved layers, and a policy."""
    rows, source = [layer(f"blocks.{i}.linear", WIDTH, WIDTH) for i in range(linears)], context.model.path
    write_survey(context, rows, 3)
    (source / "transformer").mkdir(parents=True)
    names = [f"{row.name}.weight" for row in rows] + [f"blocks.{i}.table" for i in range(others)]
    files = {}
    for i, name in enumerate(names):  # a file for each matrix, so that making them takes little memory
        files[name] = f"diffusion_pytorch_model-{i + 1:05d}-of-{len(names):05d}.safetensors"
        save_file({name: torch.randn(WIDTH, WIDTH, dtype=torch.bfloat16)}, source / "transformer" / files[name])
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (source / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (source / "transformer" / "config.json").write_text(json.dumps({"_class_name": "Unknown"}))
    (source / "model_index.json").write_text(
        json.dumps({"_class_name": "UnknownPipeline", "transformer": ["diffusers", "Unknown"]})
    )
    spec = {"weight_bits": 4, "group": 64, "block": 1, "symmetric_activations": False}
    for row in rows:
        manifest, unit = context.manifest("solve"), f"layer/{row.name}"
        codes = torch.randint(0, 16, (WIDTH, WIDTH), dtype=torch.uint8)
        scale = torch.ones(WIDTH, WIDTH // 64, dtype=torch.bfloat16)
        tensors.write(manifest.open_unit(unit), {"codes": codes, "scale": scale})
        manifest.commit(unit, value={"spec": spec})
    context.manifest("search").open_unit("front")
    front = {"mean_bits": 4.0, "mac_weighted_bits": 4.0, "rollout_error": None, "front": 1}
    context.manifest("search").commit("front", value={**front, "policy": [[4] * linears] * 3})


@click.group(help=__doc__)
def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@main.command()
@click.option("--shard", default=200, show_default=True, help="MB of a shard.")
@click.option("--linears", default=24, show_default=True)
@click.option("--others", default=18, show_default=True, help="Matrices that stay as they are.")
def assemble(shard: int, linears: int, others: int) -> None:
    weights.SHARD_BYTES = shard * MB
    with made() as small:
        assembled(small, linears=1, others=1)
        Assemble(small)("model")  # loads what works
    with made() as context:
        assembled(context, linears=linears, others=others)
        found = held(lambda: Assemble(context)("model"))
        folder = context.manifest("assemble").unit_folder("model") / "transformer"
        shards = sorted(path.stat().st_size for path in folder.glob("*.safetensors"))
    one = 2 * WIDTH**2
    click.echo(
        f"{len(shards)} shards, the largest of {shards[-1] / MB:.0f} MB, {sum(shards) / MB:.0f} MB in all; a layer in "
        f"bfloat16 {one / MB:.0f} MB; assemble held {found / MB:.0f} MB at most, of the largest shard and a layer "
        f"{found / (shards[-1] + one):.2f}"
    )


def noise(frames: int, height: int, width: int, steps: int = 4) -> Callable[..., tuple[list[Tensor], Tensor]]:
    """A stand-in for drawing: `steps` latents and the last, and a clip; latents are 8 times smaller on each side."""

    def drawn(context: Context, micro: object, folder: object, conditions: Any, unit: Any) -> Any:
        count = len(conditions.prompts)
        size = (count, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
        return [torch.randn(size) for _ in range(steps + 1)], torch.rand(count, frames, height, width, 3)

    return drawn


@main.command()
@click.option("--frames", default=81, show_default=True)
@click.option("--captions", default=2, show_default=True)
@click.option("--batch", default=1, show_default=True, help="evaluate.batch")
@click.option("--height", default=480, show_default=True)
@click.option("--width", default=832, show_default=True)
def clips(frames: int, captions: int, batch: int, height: int, width: int) -> None:
    asked = {"prompts": [f"caption {i}" for i in range(captions)], "seeds": 1, "batch": batch}
    size = 4 * frames * height * width * 3 * batch
    with made(evaluate=asked) as context:
        context.manifest("assemble").open_unit("model")
        context.manifest("assemble").commit("model")
        reference, evaluate = Reference(context), Evaluate(context)
        keys = [f"{i:03d}" for i in range(-(-captions // batch))]
        for count in (1, frames):  # the first loads what works
            drawn = noise(count, height, width)
            reference_worker.drawn = evaluate_worker.drawn = drawn  # type: ignore[assignment]
            for stage in ("reference", "evaluate"):
                for unit in list(context.manifest(stage).units()):
                    context.manifest(stage).discard(unit)
            found = {
                "reference": held(lambda: [reference(f"draw/{key}") for key in keys]),
                "evaluate": held(lambda: [evaluate(f"quantized/{key}") for key in keys]),
            }
            (Path(context.run) / "pictures").mkdir(exist_ok=True)
            found["the report's pictures"] = held(lambda: images.write_pictures(context, Path(context.run)))
    for stage, most in found.items():
        click.echo(
            f"{captions} captions, {batch} at once, of {frames} frames: {stage} held {most / MB:.0f} MB at most, "
            f"{most / size:.2f} of what it draws at once ({size / MB:.0f} MB)"
        )


@main.command()
@click.option("--width", default=15360, show_default=True, help="Channels of the input; FLUX's widest has 15360.")
@click.option("--rows", default=48, show_default=True, help="Rows kept of a step and batch (capture.rows).")
def gram(width: int, rows: int) -> None:
    def context_of(context: Context, width: int) -> Context:
        row = layer("blocks.0.wide", width, 3072)
        write_survey(context, [row], 3)
        for block, steps in enumerate((2, 1)):
            for batch in range(2):
                key, marks = (
                    BlockKey(block, batch),
                    {"start": 2 * block, "stop": 2 * block + steps, "calls_per_step": 1},
                )
                parts = {
                    f"rows:{row.name}": torch.randn(steps, rows, width),
                    f"absmax:{row.name}": torch.ones(steps, width),
                }
                tensors.write_stacked(context.manifest("capture").open_unit(key.activations), parts, marks)
                context.manifest("capture").commit(key.activations)
                scores = torch.rand(steps, 1, dtype=torch.float64)
                tensors.write(context.manifest("fisher").open_unit(key.scores), {"scores": scores}, marks)
                context.manifest("fisher").commit(key.scores)
        return context

    key = "gram/blocks.0.wide"

    def whole(context: Context, width: int) -> Tensor:
        half = tensors.mapped(context.read("hessian", key)[1], "blocks.0.wide")
        return symmetric.whole(half, width, torch.float32)

    with made() as small:
        Hessian(context_of(small, 256))(key)
        whole(small, 256)
    with made() as context:
        worker = Hessian(context_of(context, width))
        written = held(lambda: worker(key))
        found = list[Tensor]()
        read = held(lambda: found.append(whole(context, width)))
        assert np.isfinite(float(found[0][-1, 0]))
    size = 4 * width**2
    for what, most in (("made and written", written), ("verified and read", read)):
        click.echo(f"a Gram matrix of {size / MB:.0f} MB is {what} with {most / MB:.0f} MB, {most / size:.2f} of it")


if __name__ == "__main__":
    main()
