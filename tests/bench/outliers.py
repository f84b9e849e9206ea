"""How hard the built-in models are to quantize: `python -m tests.bench.outliers --run-dir DIR`.

From the capture of a run: over the inputs of the quantized linear layers, how far the largest channel stands above the
median one, how heavy the tails are, and how much channels' peaks drift over the denoising steps. Prints a table, one
row a layer kind (the name without its block's number; of its layers the largest value), so that it can be laid beside
what is published of big models.
"""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from adatsq_pipe.storage import arrays, tensors
from adatsq_pipe.storage.manifest import Manifest


def measured(folder: Path) -> dict[str, dict[str, float]]:
    """By layer that owns its input: of the newest capture below `folder` (a stage folder)."""
    newest = max((p for p in folder.iterdir() if (p / "markers").is_dir()), key=lambda p: p.stat().st_mtime)
    manifest = Manifest("capture", newest)
    units = [manifest.unit_folder(u) for u in manifest.units() if u.startswith("activations/")]
    peaks: dict[str, dict[int, list[np.ndarray[Any, Any]]]] = defaultdict(lambda: defaultdict(list))
    rows: dict[str, list[np.ndarray[Any, Any]]] = defaultdict(list)
    for unit in units:
        start = arrays.attributes(unit)["start"]
        for name, tensor in tensors.read(unit).items():
            kind, _, layer = name.partition(":")
            if kind == "absmax":
                peaks[layer][start].append(tensor.float().numpy())
            else:
                rows[layer].append(tensor.float().flatten(0, -2).numpy())
    return {layer: _of(np.concatenate(rows[layer]), peaks[layer]) for layer in rows}


def _of(rows_NI: np.ndarray[Any, Any], by_block: dict[int, list[np.ndarray[Any, Any]]]) -> dict[str, float]:
    steps = np.concatenate([np.stack(parts).max(0) for _, parts in sorted(by_block.items())])
    channel = steps.max(0)
    centred = rows_NI - rows_NI.mean(0)
    fourth, second = (centred**4).mean(), (centred**2).mean()
    drift = steps.max(0) / np.maximum(np.median(steps, 0), 1e-9)
    return {
        "max / median channel": float(channel.max() / max(float(np.median(channel)), 1e-9)),
        "kurtosis": float(fourth / second**2),
        "drift over steps": float(np.median(drift)),
        "largest drift": float(drift.max()),
    }


@click.command()
@click.option("--run-dir", type=click.Path(path_type=Path, exists=True), required=True)
def main(run_dir: Path) -> None:
    """Print the table."""
    kinds: dict[str, list[dict[str, float]]] = defaultdict(list)
    for layer, found in measured(run_dir / "capture").items():
        kinds[re.sub(r"\.\d+\.", ".*.", layer)].append(found)
    fields = ("max / median channel", "kurtosis", "drift over steps", "largest drift")
    click.echo("| layer kind | layers | " + " | ".join(fields) + " |\n|---|---|" + "---|" * len(fields))
    for kind, found_in in sorted(kinds.items()):
        worst = [max(found[field] for found in found_in) for field in fields]
        click.echo(f"| {kind} | {len(found_in)} | " + " | ".join(f"{value:.1f}" for value in worst) + " |")
    layers = [found for found_in in kinds.values() for found in found_in]
    middle = [statistics.median(found[field] for found in layers) for field in fields]
    click.echo(f"| the median layer | {len(layers)} | " + " | ".join(f"{value:.1f}" for value in middle) + " |")


if __name__ == "__main__":
    main()
