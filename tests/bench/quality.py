"""The table of README: `python -m tests.bench.quality --run-dir DIR [--captions 24] [--only SVDQuant]`.

Every row is a run of the same command in one run directory, so all share one capture, and is scored on the same
held-out captions and seeds of the built-in model. Writes the rows to DIR/table.json and prints them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click

UNIFORM = ("recipe.allocation='uniform'",)
ROWS: dict[str, tuple[str, ...]] = {
    "W4A4 round to nearest": ("w4a4", "recipe.method='rtn'"),
    "W4A4 SmoothQuant": ("w4a4", "recipe.method='smoothquant'"),
    "W4A4 QuaRot": ("w4a4", "recipe.method='quarot'"),
    "W4A4 SVDQuant, rank 32": ("w4a4", "recipe.method='svdquant'"),
    "W4A4 OrbitQuant": ("w4a4", "recipe.method='orbitquant'"),
    "W4A4 base + GPTQ, uniform A4": ("w4a4", *UNIFORM),
    "W4A4 AdaTSQ, 4.0 bits": ("w4a4",),
    "W3A3 round to nearest": ("w3a3", "recipe.method='rtn'"),
    "W3A3 SmoothQuant": ("w3a3", "recipe.method='smoothquant'"),
    "W3A3 QuaRot": ("w3a3", "recipe.method='quarot'"),
    "W3A3 SVDQuant, rank 32": ("w3a3", "recipe.method='svdquant'"),
    "W3A3 OrbitQuant": ("w3a3", "recipe.method='orbitquant'"),
    "W3A3 base + GPTQ, uniform A3": ("w3a3", *UNIFORM),
    "W3A3 AdaTSQ, 3.1 bits": ("w3a3",),
    "W3A3 AdaTSQ, 3.6 bits": ("w3a3", "search.budget=3.6"),
}


@click.command()
@click.option("--run-dir", type=click.Path(path_type=Path), required=True)
@click.option("--captions", default=24, show_default=True)
@click.option("--only", multiple=True, help="Rows whose name contains this; repeat for several.")
def main(run_dir: Path, captions: int, only: tuple[str, ...]) -> None:
    """Run the rows and print the table."""
    table = []
    for name, (preset, *sets) in ROWS.items():
        if only and not any(part in name for part in only):
            continue
        command = [sys.executable, "-m", "adatsq_pipe.pipeline.cli", "run", "--run-dir", str(run_dir)]
        options = [f"--set={s}" for s in (*sets, f"evaluate.count={captions}", "evaluate.batch=12")]
        subprocess.run([*command, "--preset", preset, *options], check=True, stdout=subprocess.DEVNULL)
        summary = json.loads((run_dir / "report" / "summary.json").read_text())
        picture = run_dir / "report" / "side_by_side.png"
        picture.rename(run_dir / f"{name.replace(' ', '_').replace(',', '').replace('+', 'and')}.png")
        (run_dir / "report" / "summary.json").unlink()
        table.append({"name": name, **{key: summary[key] for key in ("quality", "bits", "size", "search")}})
    (run_dir / "table.json").write_text(json.dumps(table, indent=1))
    click.echo(
        "| | weights | activations | layers smaller | PSNR, dB | SSIM | latent error | as asked |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    asked = table[0]["quality"]["asked_for"]["full_precision"]["total"] if table else None
    if asked:
        click.echo(f"| full precision | 16 | 16 | 1x | | | | {_interval(asked)} |")
    for row in table:
        quality, bits = row["quality"], row["bits"]
        psnr, ssim, error = (quality[k] for k in ("psnr", "ssim", "latent_error"))
        click.echo(
            f"| {row['name']} | {bits['weights_with_scales']:.2f} | {bits['activations_mean']:.2f} "
            f"| {row['size']['layer_ratio']:.2f}x | {psnr['mean']:.1f} ± {psnr['standard_error']:.1f} "
            f"| {ssim['mean']:.3f} | {error['mean']:.4f} | {_interval(quality['asked_for']['quantized']['total'])} |"
        )


def _interval(total: dict[str, float]) -> str:
    return f"{total['mean']:.2f} ± {total['standard_error']:.2f}"


if __name__ == "__main__":
    main()
