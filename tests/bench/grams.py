"""What a unit of Gram matrices costs beside its matrix products: `python -m tests.bench.grams`.

A made-up capture of the widths of DiT-XL/2 (1152 and 4608; four inputs a block, three layers read the first) goes
through the Hessian stage in this process, on one thread. Prints CPU seconds a unit by width, those of the same matrix
products alone, and the ratio of the sums.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import torch

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.survey import LayerInfo, Survey
from adatsq_pipe.stages.calibration import hessian
from adatsq_pipe.stages.calibration.survey import step_blocks
from adatsq_pipe.stages.calibration.unit_keys import BlockKey
from adatsq_pipe.storage import tensors
from adatsq_pipe.storage.rundir import RunDir
from tests.support.made_context import made_context

NARROW, WIDE = 1152, 4608
BATCHES = 2


def layers(blocks: int) -> list[LayerInfo]:
    """The layers of so many blocks."""

    def layer(name: str, width: int, out: int, source: str = "") -> LayerInfo:
        owner = source or name
        return LayerInfo(
            name=name, in_features=width, out_features=out, role="tokens", input_of=owner, macs=width * out
        )

    found = list[LayerInfo]()
    for i in range(blocks):
        of = f"transformer_blocks.{i}"
        found += [layer(f"{of}.attn1.to_{x}", NARROW, NARROW, f"{of}.attn1.to_q") for x in "qkv"]
        found += [layer(f"{of}.attn1.to_out.0", NARROW, NARROW), layer(f"{of}.ff.net.0.proj", NARROW, WIDE)]
        found += [layer(f"{of}.ff.net.2", WIDE, NARROW)]
    return found


def make_capture(folder: Path, *, blocks: int, steps: int, rows: int) -> Context:
    """A run directory with what the Hessian stage reads; random inputs and scores."""
    context = made_context(
        folder / "run", folder / "model",
        data={"prompts": ["a", "b"], "batch": 1}, capture={"rows": rows, "block": 25},
        model={"call": {"num_inference_steps": steps}}, compute={"device": "cpu"},
    )  # fmt: skip
    RunDir.at(context.run).create()
    infos = layers(blocks)
    survey = Survey(
        layers=tuple(infos), unused=(), repeated=(), step_of_call=tuple(range(steps)),
        timesteps=tuple(1000.0 - step for step in range(steps)), parameters=sum(x.size for x in infos),
    )  # fmt: skip
    capture, fisher = context.manifest("capture"), context.manifest("fisher")
    capture.open_unit("survey")
    capture.commit("survey", value=survey.plain())
    random = torch.Generator().manual_seed(0)
    for block, own in enumerate(step_blocks(context, steps)):
        marks = {"start": own.start, "stop": own.stop, "calls_per_step": 1}
        for batch in range(BATCHES):
            parts = {
                f"rows:{x.name}": torch.randn(len(own), rows, x.in_features, generator=random) for x in survey.owners()
            }
            parts |= {f"absmax:{name[5:]}": x.abs().amax(1) for name, x in parts.items()}
            key = BlockKey(block, batch)
            tensors.write_stacked(capture.open_unit(key.activations), parts, marks)
            capture.commit(key.activations)
            scores = torch.rand(len(own), len(infos), generator=random, dtype=torch.float64)
            tensors.write(fisher.open_unit(key.scores), {"scores": scores}, marks)
            fisher.commit(key.scores)
    return context


class Timed:
    """An executor in this process that keeps the CPU seconds of each task."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def stream(self, worker, context, keys) -> Iterator[tuple[str, object]]:  # type: ignore[no-untyped-def]
        opened = worker(context)
        for key in keys:
            start = time.process_time()
            opened(key)
            self.seconds[key] = time.process_time() - start
            yield key, None


def products(width: int, steps: int, rows: int, count: int) -> float:
    """CPU seconds of the matrix products of `count` inputs, after one to warm up."""
    x, out = torch.randn(rows, width), torch.empty(width, width)
    torch.mm(x.T, x, out=out)
    start = time.process_time()
    for _ in range(count * steps):
        torch.mm(x.T, x, out=out)
    return time.process_time() - start


@click.command()
@click.option("--blocks", default=28, help="Transformer blocks; 28 as in DiT-XL/2.")
@click.option("--steps", default=4)
@click.option("--rows", default=48, help="Rows kept of a step and batch (capture.rows); there are two batches.")
def main(blocks: int, steps: int, rows: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        context = make_capture(Path(folder), blocks=blocks, steps=steps, rows=rows)
        executor = Timed()
        hessian.run(context, executor, lambda done, total: None)  # type: ignore[arg-type]
        units = len(list(context.manifest("hessian").units()))
    spent = sum(executor.seconds.values())
    alone = sum(products(w, steps, BATCHES * rows, n) for w, n in ((NARROW, 3 * blocks), (WIDE, blocks)))
    print(f"{units} units in {len(executor.seconds)} tasks: {spent:.2f} s of CPU, {spent / units * 1e3:.1f} ms a unit")
    print(f"matrix products alone: {alone:.2f} s; ratio {spent / alone:.2f}")


if __name__ == "__main__":
    main()
