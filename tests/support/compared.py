"""A finished row of `compare`, as plain values, and a run directory with a finished comparison."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adatsq_pipe.pipeline.comparison import ROWS, Comparison, LeftOut
from adatsq_pipe.pipeline.paired import with_gains
from adatsq_pipe.storage import tables, tensors
from adatsq_pipe.storage.manifest import Manifest
from adatsq_pipe.storage.rundir import RunDir


def compared(**values: Any) -> dict[str, Any]:
    """A row of rounding to nearest over two captions, with `values` instead of its own."""
    row = {
        "method": "rtn",
        "change": "{}",
        "bits": "w4a4",
        "weight_bits": 4.2,
        "activation_bits": 4.0,
        "weight_bits_over": 0.2,
        "activation_bits_over": 0.0,
        "layers_smaller": 3.8,
        "psnr": 30.0,
        "psnr_interval": 1.0,
        "psnr_median": 31.5,
        "psnr_by_caption": [29.0, 31.0],
        "ssim": 0.9,
        "ssim_interval": 0.1,
        "latent_error": 0.1,
        "latent_error_interval": 0.01,
        "latent_error_geometric": 0.0625,
        "latent_log_by_caption": [-3.0, -2.5],
        "score": 0.8,
        "score_interval": 0.1,
        "full_precision_score": 0.82,
        "full_precision_score_interval": 0.1,
        "score_difference": -0.02,
        "score_difference_interval": 0.03,
        "calibration_seconds": 12.0,
        "captions": 4,
        "seeds": 3,
        "fingerprint": "f",
    }
    return row | values


FULL, STEP, GAPS = 0.5, 0.02, (0.02, 0.06)
"""Brightness of every pixel of the first draw in full precision, how much brighter the pixels of each draw are than of
the one before, and how much brighter the two methods' pixels are."""
ERRORS = ((0.01, 0.2, 0.03, 0.04), (0.05, 0.1, 0.06, 0.3))
"""Latent errors of the two methods' four draws: the hardest three are the second, the fourth and the third."""


def compared_run(folder: Path | str, *captions: str, clips: bool = False, size: tuple[int, int] = (16, 24)) -> RunDir:
    """A finished comparison of rtn and quarot on two captions and two seeds, four grey pictures each in two units.

    `folder` may be a URL.
    """
    run, names = RunDir.at(str(folder)), captions or ("a cat", "a dog")
    run.create()
    draws = [(names[i % 2], 7 + i // 2) for i in range(4)]
    shape = (*((3,) if clips else ()), *size, 3)
    full = [np.stack([np.full(shape, FULL + STEP * i) for i in (2 * unit, 2 * unit + 1)]) for unit in range(2)]
    for unit in range(2):
        _unit(run.manifest("reference", "f" * 64), f"draw/{unit:03d}", full[unit], [])
    rows = []
    for name, digest, gap, errors in zip(("rtn", "quarot"), ("a" * 64, "b" * 64), GAPS, ERRORS, strict=True):
        for unit in range(2):
            samples = [
                {"prompt": p, "seed": s, "latent_error": errors[i], "psnr": 30.0 + i, "ssim": 0.9}
                for i, (p, s) in list(enumerate(draws))[2 * unit : 2 * unit + 2]
            ]
            _unit(run.manifest("evaluate", digest), f"quarantined/{unit}", np.zeros((2, *shape)), samples)
            _unit(run.manifest("evaluate", digest), f"quantized/{unit:03d}", full[unit] + gap, samples)
        logs = [math.log(errors[i] * errors[i + 2]) / 2 for i in range(2)]
        error = math.exp(sum(logs) / 2)
        rows.append(
            compared(
                method=name,
                fingerprint=digest,
                latent_log_by_caption=logs,
                latent_error_geometric=error,
                captions=2,
                seeds=2,
            )
        )
    tables.write(run.path / ROWS, with_gains(rows))
    run.upload(ROWS)
    Comparison(
        model="flux-dev", floor="Floor: low.", command="adatsq-pipe compare --methods rtn,quarot",
        versions={"torch": "9.9"},
        references={"a" * 64: "f" * 64, "b" * 64: "f" * 64},
        left_out=[LeftOut(name="svdquant", bits="w4a4", refused="a group of 64 does not divide 341", failed=False)],
    ).write(run)  # fmt: skip
    return run


def _unit(manifest: Manifest, unit: str, pictures: Any, samples: list[dict[str, Any]]) -> None:
    folder = manifest.open_unit(unit)
    tensors.write(folder, {"pictures": torch.from_numpy(pictures.astype(np.float32))})
    if samples:
        tables.write(folder / "samples.parquet", samples)
    manifest.commit(unit)
