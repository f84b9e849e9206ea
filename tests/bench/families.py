"""Every built-in family, and whether it tells methods apart: `python -m tests.bench.families --run-dir DIR`.

For each family, full precision against round to nearest at 8, 4 and 3 bits and against the searched models, scored on
the same held-out captions (or classes) and seeds. Prints two tables, the share of pictures as asked and how cleanly
they are drawn (their things' overlap with the world's shapes), in brackets what rounding changes over the row above;
writes DIR/families.json and DIR/families.png (full precision, and the searched models at 4 and 3 bits).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from adatsq_pipe.stages.scenes.builtin_models import builtin_models
from adatsq_pipe.stages.scenes.world import captions as grammar
from adatsq_pipe.stages.scenes.world import metrics, scorer
from adatsq_pipe.storage import arrays, tables
from adatsq_pipe.storage.rundir import RunDir

RTN = "recipe.method='rtn'"
ROWS: dict[str, tuple[str, ...]] = {
    "W8A8 round to nearest": (
        "w4a4", RTN, "recipe.weight_bits=8", "recipe.conditioning_bits=8", "recipe.activation_bits=8",
    ),
    "W4A4 round to nearest": ("w4a4", RTN),
    "W3A3 round to nearest": ("w3a3", RTN),
    "W4A4 AdaTSQ, 4.0 bits": ("w4a4",),
    "W3A3 AdaTSQ, 3.1 bits": ("w3a3",),
}  # fmt: skip
SHOWN = ("W4A4 AdaTSQ, 4.0 bits", "W3A3 AdaTSQ, 3.1 bits")
PICTURES = 6
CLEAN = "overlap"


def score(family: str, run_dir: Path, sets: tuple[str, ...], options: list[str]) -> dict[str, Any]:
    """One run: its summary, and its seconds of evaluation."""
    preset, *rest = sets
    command = [
        sys.executable,
        "-m",
        "adatsq_pipe.pipeline.commands.cli",
        "run",
        "--run-dir",
        str(run_dir),
        "--model",
        family,
    ]
    command += ["--model", family, "--preset", preset, *[f"--set={s}" for s in (*rest, *options)]]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    path = run_dir / "report" / "summary.json"
    summary: dict[str, Any] = json.loads(path.read_text())
    path.unlink()
    return {**summary, "wall": time.perf_counter() - start}


def drawn_by(run_dir: Path, evaluation: str) -> list[Path]:
    """Folders of an evaluation's units that drew with the quantized model; `evaluation` is its fingerprint."""
    manifest = RunDir.at(str(run_dir)).manifest("evaluate", evaluation)
    return [manifest.unit_folder(unit) for unit in manifest.units() if unit.startswith("quantized/")]


def samples(run_dir: Path, evaluation: str) -> dict[tuple[int, int], dict[str, Any]]:
    """Rows of an evaluation's pictures, by caption and seed."""
    rows = [row for unit in drawn_by(run_dir, evaluation) for row in tables.read(unit / "samples.parquet")]
    return {(row["entry"], row["seed"]): row for row in rows}


def over(
    rows: dict[tuple[int, int], dict[str, Any]], others: dict[tuple[int, int], dict[str, Any]]
) -> dict[str, float]:
    """What `rows` show more of as asked than `others`, paired by caption and seed: mean and standard error."""
    paired = [{**row, "reference_right": others[key]["right"]} for key, row in sorted(rows.items())]
    difference: dict[str, float] = metrics.compare(paired)["difference"]
    return difference


def drawn_for(run_dir: Path, unit: Path) -> Any:
    """Full precision's pictures for an evaluation's unit `[N, ...]`, which are of the same shards and seeds."""
    references = [folder / "units" / "draw" / unit.name for folder in (run_dir / "reference").iterdir()]
    found = [folder for folder in references if folder.exists()]
    if len(found) > 1:
        raise click.ClickException(f"{run_dir} holds pictures of several full-precision models; name a new --run-dir")
    return arrays.read(found[0], "pictures")


def cleanness(run_dir: Path, evaluation: str) -> tuple[dict[tuple[int, int], float], dict[tuple[int, int], float]]:
    """How cleanly an evaluation's pictures are drawn, by caption and seed: the quantized model's, full precision's."""
    got, wanted = dict[tuple[int, int], float](), dict[tuple[int, int], float]()
    for unit in drawn_by(run_dir, evaluation):
        keys = [(row["entry"], row["seed"]) for row in tables.read(unit / "samples.parquet")]
        got |= dict(zip(keys, scorer.mean_overlap(arrays.read(unit, "pictures")).tolist(), strict=True))
        wanted |= dict(zip(keys, scorer.mean_overlap(drawn_for(run_dir, unit)).tolist(), strict=True))
    return got, wanted


def over_seeds(values: dict[tuple[int, int], float]) -> dict[str, float]:
    """Mean and standard error of what there is by caption and seed."""
    return metrics.caption_mean((entry, value) for (entry, _), value in values.items())


def pictures(run_dir: Path, evaluation: str) -> tuple[list[str], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The first captions with their pictures, full precision and quantized, of an evaluation of a run."""
    captions, wanted, got = list[str](), [], []
    for unit in drawn_by(run_dir, evaluation):
        asked = [row["prompt"] for row in tables.read(unit / "samples.parquet")]
        captions += [grammar.class_request(int(label)).caption if label.isdigit() else label for label in asked]
        got.append(arrays.read(unit, "pictures"))
        wanted.append(drawn_for(run_dir, unit))
        if len(captions) >= PICTURES:
            break
    return captions[:PICTURES], np.concatenate(wanted)[:PICTURES], np.concatenate(got)[:PICTURES]


def plot(shown: dict[str, list[tuple[str, list[str], np.ndarray[Any, Any]]]], path: Path) -> None:
    """Families below each other; for each, a row of pictures per model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [(family, *row) for family, models in shown.items() for row in models]
    figure, axes = plt.subplots(len(rows), PICTURES, figsize=(1.35 * PICTURES, 1.42 * len(rows)), squeeze=False)
    for line, (family, name, captions, images) in zip(axes, rows, strict=True):
        for axis, caption, image in zip(line, captions, images, strict=True):
            axis.imshow((image if image.ndim == 3 else image[len(image) // 2]).clip(0, 1))
            axis.set_xticks([])
            axis.set_yticks([])
            if name == "full precision":
                axis.set_title(caption.replace(" left", "\nleft").replace(" right", "\nright"), fontsize=5.5)
        line[0].set_ylabel(f"{family.removeprefix('scenes/')}\n{name.split(',')[0]}", fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def cell(scores: dict[str, Any], figure: str) -> str:
    """A figure with its standard error, and the same of its paired difference from the row above."""
    total, less = scores[figure], scores.get(f"{figure} over the row above")
    paired = f" ({less['mean']:+.3f} ± {less['standard_error']:.3f})" if less else ""
    return f"{total['mean']:.3f} ± {total['standard_error']:.3f}{paired}"


@click.command()
@click.option("--run-dir", type=click.Path(path_type=Path), required=True)
@click.option("--captions", default=200, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--only", multiple=True, help="Families; all without it.")
@click.option("--steps", type=int, help="Steps of a walk, in the place of the family's own.")
@click.option("--fast", is_flag=True, help="Round to nearest alone: no search, no picture.")
def main(run_dir: Path, captions: int, seeds: int, only: tuple[str, ...], steps: int | None, fast: bool) -> None:
    """Run the rows of every family and print the table."""
    run_dir.mkdir(parents=True, exist_ok=True)
    rows = {name: sets for name, sets in ROWS.items() if not fast or RTN in sets}
    options = [f"evaluate.count={captions}", f"evaluate.seeds={seeds}", "evaluate.batch=20"]
    options += [f"model.call.num_inference_steps={steps}"] if steps else []
    told: dict[str, dict[str, Any]] = {}
    shown: dict[str, list[tuple[str, list[str], np.ndarray[Any, Any]]]] = {}
    for family in [name for name in builtin_models() if not only or name in only]:
        place = run_dir / family.rpartition("/")[2]
        drawn, clean = dict[tuple[int, int], dict[str, Any]](), dict[tuple[int, int], float]()
        for name, sets in rows.items():
            summary = score(family, place, sets, options)
            asked = summary["quality"]["asked_for"]
            told.setdefault(family, {})["full precision"] = asked["full_precision"]
            told[family][name] = {**asked["quantized"], "wall": summary["wall"], "psnr": summary["quality"]["psnr"]}
            above, drawn = drawn, samples(place, summary["fingerprint"])
            cleaner = clean
            clean, whole = cleanness(place, summary["fingerprint"])
            told[family]["full precision"][CLEAN], told[family][name][CLEAN] = over_seeds(whole), over_seeds(clean)
            if RTN in sets:
                told[family][name]["total over the row above"] = over(drawn, above) if above else asked["difference"]
                less = {key: value - (cleaner or whole)[key] for key, value in clean.items()}
                told[family][name][f"{CLEAN} over the row above"] = over_seeds(less)
            click.echo(
                f"{family}: {name} {asked['quantized']['total']['mean']:.3f} ({summary['wall']:.0f} s)", err=True
            )
            if name in SHOWN:
                prompts, wanted, got = pictures(place, summary["fingerprint"])
                if family not in shown:
                    shown[family] = [("full precision", prompts, wanted)]
                shown[family].append((name, prompts, got))
    (run_dir / "families.json").write_text(json.dumps(told, indent=1))
    if shown:
        plot(shown, run_dir / "families.png")
    for figure, heading in (("total", "as asked"), (CLEAN, "how cleanly")):
        click.echo(f"\n| {heading} | " + " | ".join(told) + " |\n|---|" + "---|" * len(told))
        for name in ("full precision", *rows):
            click.echo(f"| {name} | " + " | ".join(cell(told[family][name], figure) for family in told) + " |")


if __name__ == "__main__":
    main()
