"""How fast does a CPU multiply float32, by MKL and by oneDNN? `python -m tests.bench.products`.

GFLOP/s of one thread, of `functional.linear` with a bias and of `numerics.products.linear`, at shapes of the built-in
models and of real ones, the fastest of some repeats; and the larger error of the two beside float64, over the largest
number. What is below `products.LEAST` is multiplied by MKL in either column.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import torch
from torch.nn import functional

from adatsq_pipe.stages.numerics import products

TOKENS = (16, 64, 256, 1024)
WIDTHS = ((128, 128), (128, 512), (512, 128), (640, 640), (1152, 1152), (3072, 3072))
"""(in, out)"""


def rate(call: Callable[[], object], operations: float, repeats: int) -> float:
    """GFLOP/s of the fastest of some repeats."""
    call()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return operations / min(taken) / 1e9


@click.command()
@click.option("--repeats", default=30, show_default=True)
def main(repeats: int) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    click.echo("| tokens | in x out | MKL | with oneDNN | ratio | error, MKL | error, with oneDNN |")
    click.echo("|---|---|---|---|---|---|---|")
    for width, out in WIDTHS:
        for tokens in TOKENS:
            x, w, b = torch.randn(tokens, width), torch.randn(out, width), torch.randn(out)
            true = x.double() @ w.double().T + b.double()
            found = []
            for multiply in (functional.linear, products.linear):
                speed = rate(lambda: multiply(x, w, b), 2.0 * tokens * width * out, repeats)  # noqa: B023
                found.append((speed, ((multiply(x, w, b) - true).abs().max() / true.abs().max()).item()))
            (old, old_error), (new, new_error) = found
            click.echo(
                f"| {tokens} | {width} x {out} | {old:.0f} | {new:.0f} | {new / old:.2f} | {old_error:.1e} "
                f"| {new_error:.1e} |"
            )


if __name__ == "__main__":
    main()
