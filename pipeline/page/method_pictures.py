"""The pictures of a comparison as files: of some captions and seeds full precision, and every method's."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adatsq_pipe.pipeline.compare_table import name_of
from adatsq_pipe.pipeline.notes import Notes
from adatsq_pipe.pipeline.page.images import save, slug
from adatsq_pipe.pipeline.pictures import Picture
from adatsq_pipe.storage import arrays, tables
from adatsq_pipe.storage.manifest import Manifest
from adatsq_pipe.storage.rundir import RunDir
from adatsq_pipe.storage.tables import Row

FOLDER = "compare-pictures"
"""Name of the folder in the run directory."""
DRAWS = 16
"""At most so many captions and seeds have their pictures on the page; the run directory keeps all."""
HARDEST = 3
"""So many come first, whose mean latent error over the methods is the largest."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A method's picture of a draw, and what was measured of it. `source` is relative to the page."""

    name: str
    bits: str
    row: Row
    source: str


@dataclass(kw_only=True)
class Draw:
    """One caption and seed: its picture in full precision, and by every method, all of one size."""

    prompt: str
    seed: int
    hard: bool
    full: str = ""
    width: int = 0
    height: int = 0
    tiles: list[Tile] = field(default_factory=list)


def write_pictures(run: RunDir, rows: Sequence[Row], references: Mapping[str, str], notes: Notes) -> list[Draw]:
    """Write the pictures of the chosen draws of all `rows` into the run directory, and return the draws.

    A row whose pictures cannot be read is noted, and has no tiles.
    """
    folder = run.path / FOLDER
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    measured = dict[int, list[Row]]()
    for number, row in enumerate(rows):
        with notes.of(f"{FOLDER}: {name_of(row)} at {row['bits']}"):
            measured[number] = _samples(run.manifest("evaluate", row["fingerprint"]))
    if not measured:
        return []
    first = next(iter(measured.values()))
    chosen = {place: _draw(first[place], hard) for place, hard in choose(list(measured.values()))}
    for number, samples in measured.items():
        row = rows[number]
        with notes.of(f"{FOLDER}: {name_of(row)} at {row['bits']}"):
            reference = run.manifest("reference", references[row["fingerprint"]])
            _write_row(run, number, row, samples, reference, chosen)
    return [draw for draw in chosen.values() if draw.full]


def choose(measured: Sequence[Sequence[Row]]) -> list[tuple[int, bool]]:
    """The places of the draws to show among the samples of all rows, and whether each is one of the hardest.

    The others follow in order: first all captions with the first seed.
    """
    places = range(min(len(samples) for samples in measured))
    error = {place: statistics.fmean(samples[place]["latent_error"] for samples in measured) for place in places}
    hardest = sorted(places, key=lambda place: -error[place])[:HARDEST]
    others = [place for place in places if place not in hardest]
    return [*((place, True) for place in hardest), *((place, False) for place in others)][:DRAWS]


def _draw(sample: Row, hard: bool) -> Draw:
    return Draw(prompt=sample["prompt"], seed=sample["seed"], hard=hard)


def _units(evaluate: Manifest) -> list[str]:
    return [unit for unit in evaluate.units() if unit.startswith("quantized/")]


def _samples(evaluate: Manifest) -> list[Row]:
    rows = [row for unit in _units(evaluate) for row in tables.read(evaluate.local_folder(unit) / "samples.parquet")]
    if not rows:
        raise FileNotFoundError(f"{evaluate.folder} has no pictures")
    return rows


def _write_row(
    run: RunDir, number: int, row: Row, samples: Sequence[Row], reference: Manifest, chosen: Mapping[int, Draw]
) -> None:
    """Write one row's pictures of the chosen draws, and full precision's where no row before has done so."""
    evaluate, start = run.manifest("evaluate", row["fingerprint"]), 0
    for unit in _units(evaluate):
        folder = evaluate.local_folder(unit)
        size = len(tables.read(folder / "samples.parquet"))
        wanted = [place for place in range(start, start + size) if place in chosen]
        got = arrays.mapped(folder, "pictures") if wanted else None
        for place in wanted:
            draw, sample = chosen[place], samples[place]
            assert got is not None
            if (sample["prompt"], sample["seed"]) != (draw.prompt, draw.seed):
                raise ValueError(f"its draw {place} is of another caption or seed than the other rows' are")
            stem = f"{list(chosen).index(place):02d}-{slug(draw.prompt)}-{draw.seed}"
            if not draw.full:
                whole = arrays.mapped(reference.local_folder(unit.replace("quantized", "draw")), "pictures")
                draw.full, draw.width, draw.height = _saved(run.path, f"{stem}-fp", whole[place - start])
            name = name_of(row)
            source, *_ = _saved(run.path, f"{stem}-{number:02d}-{row['bits']}-{slug(name)}", got[place - start])
            draw.tiles.append(Tile(name=name, bits=row["bits"], row=sample, source=source))
        start += size


def _saved(run: Path, stem: str, picture: Picture) -> tuple[str, int, int]:
    """Save a picture or a clip; (name relative to the run directory, width, height)."""
    name = f"{FOLDER}/{stem}.{'png' if picture.ndim == 3 else 'gif'}"
    save(picture if picture.ndim == 4 else [picture], run / name)
    return name, picture.shape[-2], picture.shape[-3]
