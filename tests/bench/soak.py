"""Random kills over whole runs, within a budget of minutes: `python -m tests.bench.soak [--kills 50 --minutes 20]`.

Tiny runs on a cluster of four nodes on this machine. At seeded moments a node, a worker, the driver or the whole
cluster with its head is killed (a dead node is replaced a little later); every run must end with the bytes of one that
nothing happened to. Printed: kills by kind, runs, what was done again.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click
import psutil

from tests.nodes import Nodes, drive, torn
from tests.whole import harness

KINDS = ("worker", "worker", "node", "node", "driver", "head")


class Soak:
    """The state of the soak: the cluster of now, and what has been done to it."""

    def __init__(self, model: Path, seed: int, mean: float) -> None:
        self.model, self.random, self.mean = model, random.Random(seed), mean
        self.nodes = Nodes(4)
        self.kills: Counter[str] = Counter()
        self.torn = 0

    def run(self, folder: Path, left: int, end: float) -> None:
        """One whole run; up to `left` kills, none after `end`."""
        driver = drive(folder, self.model, self.nodes.address)
        due, allowed = self._next(), self.kills.total() + left
        while driver.returncode != 0:
            if driver.returncode is not None:
                self.torn += torn(folder)
                driver = drive(folder, self.model, self.nodes.address)
            if time.monotonic() > due and self.kills.total() < allowed and time.monotonic() < end:
                driver = self._strike(folder, driver)
                due = self._next()
            time.sleep(0.05)
        self.torn += torn(folder)

    def _next(self) -> float:
        return time.monotonic() + self.random.expovariate(1 / self.mean)

    def _strike(self, folder: Path, driver: harness.Started) -> harness.Started:
        kind = self.random.choice(KINDS)
        if kind == "worker":
            found = [p for p in psutil.process_iter(["name"]) if (p.info["name"] or "").startswith("ray::WorkerActor")]
            if not found:
                return driver
            self.random.choice(sorted(found, key=lambda p: p.pid)).kill()
        elif kind == "node":
            self.nodes.kill(self.random.randrange(len(self.nodes.nodes)))
            self.nodes.join()
        elif kind == "head":
            self.nodes.end()
            driver.kill()
            self.nodes = Nodes(4)
        else:
            driver.kill()
        self.kills[kind] += 1
        if kind in ("driver", "head"):
            self.torn += torn(folder)
            return drive(folder, self.model, self.nodes.address)
        return driver


@click.command()
@click.option("--kills", default=50, show_default=True)
@click.option("--minutes", default=20.0, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--mean", default=6.0, show_default=True, help="Seconds between kills, on average.")
def main(kills: int, minutes: float, seed: int, mean: float) -> None:
    import json

    from tests.tiny import BUILDERS

    start, units, runs = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        pipe, call = BUILDERS["flux"]()
        pipe.save_pretrained(model)
        (model / "sampling.json").write_text(json.dumps({"call": call}))
        whole = Path(scratch) / "whole"
        harness.run(*harness.tiny(whole, model)).check_returncode()
        soak = Soak(model, seed, mean)
        try:
            while soak.kills.total() < kills and time.monotonic() - start < 60 * minutes:
                folder = Path(scratch) / f"run{runs}"
                soak.run(folder, kills - soak.kills.total(), start + 60 * minutes)
                harness.same(folder, whole)
                runs += 1
                units += len(list(folder.glob("*/*/markers/**/*.json")))
                click.echo(f"run {runs}: same bytes; kills so far {dict(soak.kills)}, torn tries {soak.torn}")
        finally:
            soak.nodes.end()
    total = soak.kills.total()
    share = soak.torn / max(1, total) / (units / max(1, runs))
    click.echo(
        f"{runs} runs, {total} kills ({', '.join(f'{n} {kind}' for kind, n in sorted(soak.kills.items()))}), all with "
        f"the bytes of the undisturbed run; {soak.torn} units begun again, {100 * share:.2f} % of a run's "
        f"{units // max(1, runs)} units for each kill (aim 5 %); {(time.monotonic() - start) / 60:.1f} min"
    )
    if total < kills:
        click.echo(f"{kills} kills were asked for: the {minutes:g} minutes were over first", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
