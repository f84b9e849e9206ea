"""How the fan-out scales: `python -m tests.bench.scaling [--forward .5] [--out scaling.png]`.

Ray actors with a (fake) GPU each run units that sleep as long as their forwards would take, through the pool that a run
uses; starting the actors is not counted. Efficiency is the units' seconds over workers times wall time. A wide stage
(capture, Fisher, Hessian) has all its units at once. The search is a whole one: the default beam's levels one after the
other, then the rollouts, each cut into units by the function that the stage cuts them with; only errors are made up.
A forward of a batch takes as long as those of its captions one by one, as with a model that one caption fills a GPU
with. The default settings of [search] and [data] are one row; one caption a unit and 16 captions, as a model of FLUX's
size would have, the other.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import click

from adatsq_pipe.cluster.ray_executor import RayExecutor
from adatsq_pipe.cluster.resources import Resources
from adatsq_pipe.stages.allocation import batch_slices
from adatsq_pipe.stages.allocation.batch_slices import BatchSlice
from adatsq_pipe.stages.allocation.trellis import SearchSettings
from adatsq_pipe.stages.base.settings import DataSettings
from adatsq_pipe.stages.numerics.beam import Beam
from tests.bench.sleepers import Evaluation, Nap, Sleeper, forwards_of

WORKERS = (1, 2, 4, 8, 16, 32)
CAPTIONS = 32
SETTINGS = {
    "search, defaults": (8, SearchSettings()),
    "search, 8 captions, one a unit": (8, SearchSettings(samples=1)),
    "search, 16 captions, one a unit": (8, SearchSettings(samples=1, batches=2, rollout_prompts=16)),
}


def _wall(pool: RayExecutor, worker: type[Sleeper], keys: list[str], nap: Nap) -> float:
    start = time.perf_counter()
    for _ in pool.stream(worker, nap, keys):
        pass
    return time.perf_counter() - start


def _beam(settings: SearchSettings, steps: int) -> Beam:
    prices = tuple(settings.budget - 0.1 * i for i in range(len(settings.candidates)))
    return Beam(prices=(prices,) * steps, budget=settings.budget, width=settings.width)


def _made_up(choices: batch_slices.Choices) -> float:
    """An error that falls with the bits spent, and is the same in every process."""
    noise = int(hashlib.sha256(repr(choices).encode()).hexdigest()[:8], 16) / 2**32
    return (0.5 + noise) / (1 + choices[-1])


def _search(pool: RayExecutor, batch: int, settings: SearchSettings, steps: int, forward: float) -> tuple[float, float]:
    """Wall seconds of a search, and seconds of forwards in it."""
    data = DataSettings(prompts=tuple(map(str, range(CAPTIONS))), batch=batch)
    cuts = {"path": BatchSlice.for_trellis(data, settings), "rollout": BatchSlice.for_rollouts(data, settings)}
    nap = Nap(forward, steps=steps, samples={kind: tuple(p.samples for p in cut) for kind, cut in cuts.items()})
    wall = work = 0.0

    def dispatch(kind: str, paths: list[batch_slices.Choices]) -> None:
        nonlocal wall, work
        keys = list(batch_slices.keys_of(kind, paths, cuts[kind]))
        wall += _wall(pool, Evaluation, keys, nap)
        work += sum(forward * forwards_of(nap, key) for key in keys)

    beam = _beam(settings, steps)
    while not beam.finished:
        paths = beam.ask()
        dispatch("path", paths)
        beam = beam.tell({path: _made_up(path) for path in paths})
    even = [(c,) * steps for c in range(len(settings.candidates))]
    dispatch("rollout", list(dict.fromkeys([*(path.choices for path in beam.paths), *even])))
    return wall, work


@click.command()
@click.option("--forward", default=0.5, show_default=True, help="Seconds of a caption's forward: what is slept.")
@click.option("--per-unit", default=4, show_default=True, help="Forwards in a unit of a wide stage.")
@click.option("--units", default=8, show_default=True, help="Units of a wide stage for each worker.")
@click.option("--steps", default=8, show_default=True, help="Scheduler steps: levels, and forwards of a rollout.")
@click.option("--workers", multiple=True, type=int, help="Only with so many workers; repeatable.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the curve is drawn.")
def main(forward: float, per_unit: int, units: int, steps: int, workers: tuple[int, ...], out: Path | None) -> None:
    chosen, rows = workers or WORKERS, dict[int, dict[str, float]]()
    names = ("wide stage", *SETTINGS)
    click.echo("| workers | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 1))
    for count in chosen:
        pool = RayExecutor(Resources(workers=count, gpus=count, gpus_per_worker=1, cpus_per_worker=0.01), "scaling")
        while pool.live_workers < count:
            _wall(pool, Sleeper, [str(i) for i in range(4 * count)], Nap(0.05))
        wide = _wall(pool, Sleeper, [str(i) for i in range(units * count)], Nap(forward * per_unit))
        rows[count] = {"wide stage": units * forward * per_unit / wide}
        for name, (batch, settings) in SETTINGS.items():
            wall, work = _search(pool, batch, settings, steps, forward)
            rows[count][name] = work / count / wall
        pool.close()
        click.echo("| " + " | ".join([str(count), *(f"{100 * rows[count][name]:.0f} %" for name in names)]) + " |")
    if out:
        _draw(rows, out)


def _draw(rows: dict[int, dict[str, float]], out: Path) -> None:
    from adatsq_pipe.pipeline.plots.figures import pyplot

    plt, counts = pyplot(), list(rows)
    figure, axis = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
    for name in rows[counts[0]]:
        axis.plot(counts, [count * rows[count][name] for count in counts], marker="o", label=name)
    axis.plot(counts, counts, color="0.7", linestyle="--", label="ideal")
    axis.set(xscale="log", yscale="log", xlabel="workers", ylabel="times as fast as one", xticks=counts, yticks=counts)
    axis.set_xticklabels(counts)
    axis.set_yticklabels(counts)
    axis.minorticks_off()
    axis.legend(fontsize=8)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
