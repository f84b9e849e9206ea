"""How the fan-out scales: `python -m tests.bench.scaling [--forward .5] [--out scaling.png]`.

Ray actors with a (fake) GPU each run units that sleep as long as their forwards would take, through the pool that a run
uses; starting the actors is not counted. Efficiency is the units' seconds over workers times wall time. A wide stage
(capture, Fisher, Hessian) has all its units at once; the search has a level of `--candidates` evaluations at a time.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import click

from adatsq_pipe.cluster.pool import Pool
from adatsq_pipe.cluster.resources import Resources
from tests.bench.sleepers import Evaluation, Nap, Sleeper

WORKERS = (1, 2, 4, 8, 16, 32)


def _wall(pool: Pool, worker: type[Sleeper], levels: list[list[str]], nap: Nap) -> float:
    start = time.perf_counter()
    for keys in levels:
        for _ in pool.stream(worker, nap, keys):
            pass
    return time.perf_counter() - start


@click.command()
@click.option("--forward", default=0.5, show_default=True, help="Seconds of one forward: what is slept.")
@click.option("--per-unit", default=4, show_default=True, help="Forwards in a unit of a wide stage.")
@click.option("--units", default=8, show_default=True, help="Units of a wide stage for each worker.")
@click.option("--candidates", default=6, show_default=True, help="Evaluations in a level (width x candidates).")
@click.option("--levels", default=10, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Where the curve is drawn.")
def main(forward: float, per_unit: int, units: int, candidates: int, levels: int, out: Path | None) -> None:
    rows = []
    click.echo("| workers | wide stage | search, as it is | search, if a level filled the workers |\n|---|---|---|---|")
    for workers in WORKERS:
        pool = Pool(Resources(workers=workers, gpus=workers, gpus_per_worker=1, cpus_per_worker=0.01), "scaling")
        while pool.answering < workers:
            _wall(pool, Sleeper, [[str(i) for i in range(4 * workers)]], Nap(0.05))
        nap, full = Nap(forward), math.ceil(candidates / workers) * workers
        wide = _wall(pool, Sleeper, [[str(i) for i in range(units * workers)]], Nap(forward * per_unit))
        narrow = _wall(pool, Evaluation, [[str(i) for i in range(candidates)]] * levels, nap)
        filled = _wall(pool, Evaluation, [[str(i) for i in range(full)]] * levels, nap)
        pool.close()
        rows.append(
            (
                workers,
                units * forward * per_unit / wide,
                candidates * levels * forward / workers / narrow,
                full * levels * forward / workers / filled,
            )
        )
        click.echo("| " + " | ".join([str(workers), *(f"{100 * share:.0f} %" for share in rows[-1][1:])]) + " |")
    if out:
        _draw(rows, candidates, out)


def _draw(rows: list[tuple[int, float, float, float]], candidates: int, out: Path) -> None:
    from adatsq_pipe.pipeline.report import pyplot

    plt = pyplot()
    figure, axis = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    for place, name in enumerate(
        ("wide stage", f"search, {candidates} a level", "search, levels as wide as workers"), 1
    ):
        axis.plot([row[0] for row in rows], [row[0] * row[place] for row in rows], marker="o", label=name)
    axis.plot(WORKERS, WORKERS, color="0.7", linestyle="--", label="ideal")
    axis.set(
        xscale="log", yscale="log", xlabel="workers", ylabel="times as fast as one", xticks=WORKERS, yticks=WORKERS
    )
    axis.set_xticklabels(WORKERS)
    axis.set_yticklabels(WORKERS)
    axis.minorticks_off()
    axis.legend(fontsize=8)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
