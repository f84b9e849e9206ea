"""What does solving one layer cost, beside GPTQ as published? `python -m tests.bench.solves [--width 3072 --out 3072]`.

CPU seconds of one thread. The reference is algorithm 1 of GPTQ (2210.17323) in float32, on the weight as it lies, with
the inverse's Cholesky factor and lazy updates of 128 columns; its grid costs nothing here. Ours is a whole layer of the
solve stage: clipped grid, factor, solve, and the error of the codes. Layers that share an input (q, k, v) pay for one
factor. Errors are in float64, of the same grid. The fastest of some repeats counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import torch
from torch import Tensor

from adatsq_pipe.stages.numerics import gptq, weight
from adatsq_pipe.stages.numerics.grid import Grid, dequantize, quantize
from adatsq_pipe.stages.numerics.weight_grid import weight_grid

SHAPES = ((1024, 1024), (3072, 3072), (3072, 12288))
"""(in, out)"""
BITS = (4, 3)
DAMPING = 0.01


def problem(width: int, out: int) -> tuple[Tensor, Tensor]:
    """A weight [out, in] and the Gram matrix of inputs whose directions differ a hundredfold in size, with noise."""
    random = torch.Generator().manual_seed(0)
    mix = torch.randn(width, width, generator=random) * torch.logspace(0, -2, width).unsqueeze(1) / width**0.5
    x = torch.randn(4096, width, generator=random) @ mix + 0.3 * torch.randn(4096, width, generator=random)
    return 0.02 * torch.randn(out, width, generator=random), (x.T @ x).double() / len(x)


def published(w_OI: Tensor, gram_II: Tensor, grid: Grid) -> Tensor:
    """The values that algorithm 1 gives with act-order, float32 [out, in]."""
    order = torch.argsort(gram_II.diagonal(), descending=True)
    w, h = w_OI[:, order].clone(), gram_II.float()[order][:, order]
    h.diagonal().add_(DAMPING * h.diagonal().mean())
    hinv = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    values, scale, zero = torch.empty_like(w), grid.scale_OG[:, 0], grid.zero_OG[:, 0]
    for start in range(0, w.shape[1], 128):
        stop = min(start + 128, w.shape[1])
        block, errors = w[:, start:stop].clone(), torch.zeros_like(w[:, start:stop])
        for i in range(stop - start):
            column, row = block[:, i], hinv[start + i, start:stop]
            values[:, start + i] = dequantize(quantize(column, scale, zero, grid.qmax), scale, zero)
            errors[:, i] = (column - values[:, start + i]) / row[i]
            block[:, i:] -= errors[:, i].unsqueeze(1) @ row[i:].unsqueeze(0)
        w[:, stop:] -= errors @ hinv[start:stop, stop:]
    return values[:, torch.argsort(order)]


def cpu_seconds(call: Callable[[], object], repeats: int) -> float:
    """The least of some repeats."""
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return min(taken)


@click.command()
@click.option("--width", default=0, help="Input width; with --out, one shape instead of three.")
@click.option("--out", default=0, help="Output width.")
@click.option("--repeats", default=3, show_default=True)
def main(width: int, out: int, repeats: int) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    click.echo("| in x out | bits | published | factor | solve | grid | whole layer | with the factor shared | error |")
    click.echo("|---|---|---|---|---|---|---|---|---|")
    for shape in ((width, out),) if width and out else SHAPES:
        w, gram = problem(*shape)
        for bits in BITS:
            click.echo(row(w, gram, bits, repeats))


def row(w: Tensor, gram: Tensor, bits: int, repeats: int) -> str:
    """A line of the table: seconds, their ratio to the published solve's, and the ratio of errors."""
    grid = weight_grid(w, bits=bits, group=0, symmetric=False, clip=True)
    columns, exact = (grid.scale_OG, grid.zero_OG), gram
    gram = gram.to(gptq.precision(len(gram), DAMPING))  # as the stage has it
    base = cpu_seconds(lambda: published(w, gram, grid), repeats)
    factored = gptq.factor(gram, damping=DAMPING, act_order=True)
    factor = cpu_seconds(lambda: gptq.factor(gram, damping=DAMPING, act_order=True), repeats)
    solve = cpu_seconds(lambda: gptq.solve(w, factored, grid), repeats)
    clip = cpu_seconds(lambda: weight_grid(w, bits=bits, group=0, symmetric=False, clip=True), repeats)

    def layer() -> weight.QuantizedWeight:
        return weight.on_grid(
            w, gram, lambda w: weight_grid(w, bits=bits, group=0, symmetric=False, clip=True),
            solver=lambda w, grid: gptq.solve(w, factored, grid),
        )  # fmt: skip

    shared = cpu_seconds(layer, repeats)
    off = [w - values for values in (dequantize(layer().tensors["codes"], *columns), published(w, gram, grid))]
    ours, theirs = (float(((e.double() @ exact) * e).sum()) for e in off)
    cells = [f"{seconds:.2f} s ({seconds / base:.2f})" for seconds in (factor, solve, clip, factor + shared, shared)]
    shape = f"{w.shape[1]} x {w.shape[0]}"
    return f"| {shape} | {bits} | {base:.2f} s | {' | '.join(cells)} | {ours / theirs:.5f} |"


if __name__ == "__main__":
    main()
