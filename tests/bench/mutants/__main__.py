"""Puts every fault of the list into a copy of the code, one at a time, and runs the fast tests that should notice.

Exits with 1 if more than 5 % of the faults survive, or if the list does not fit the code.
"""

from __future__ import annotations

import time
from collections import Counter

import click

from tests.bench.mutants.check import FAULTS, stale
from tests.bench.mutants.copies import Copies, Verdict

MOST_SURVIVORS = 0.05


@click.command(help=__doc__)
@click.option("--only", default="", help="Only faults whose file or text contains this.")
@click.option("--jobs", default=2, show_default=True, help="Faults at a time.")
def main(only: str, jobs: int) -> None:
    faults = [fault for fault in FAULTS if only in str(fault)]
    reasons = [(fault, why) for fault in faults if (why := stale(fault))]
    for _, why in reasons:
        click.echo(f"stale     {why}")
    start, count = time.monotonic(), Counter[Verdict]()
    with Copies(jobs) as copies:
        for fault, verdict, test in copies.verdicts([fault for fault in faults if not stale(fault)]):
            count[verdict] += 1
            click.echo(f"{verdict:9} {fault}  [{test}]" if test else f"{verdict:9} {fault}")
    tried = sum(count.values())
    parts = [f"{number} {verdict}" for verdict, number in sorted(count.items())]
    click.echo(f"{tried} faults in {time.monotonic() - start:.0f} s: {', '.join(parts)}; {len(reasons)} stale")
    if reasons or count["broken"] or count["survived"] > MOST_SURVIVORS * tried:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
