"""Scores of many pictures: the share that is right per task, the unweighted total, and their standard errors.

A caption's draws with several seeds are one observation: they resemble each other. Imports no torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from adatsq_pipe.stages.scenes.world import captions, motions

TASKS = (*captions.TASKS, *motions.TASKS)


def tally(rows: Sequence[Mapping[str, Any]], field: str) -> dict[str, Any]:
    """`rows` have `task`, `entry` (the caption's place in the list) and a number `field`.

    Returns {"tasks": {task: {"mean", "standard_error", "captions"}}, "total": {"mean", "standard_error"}}; the total is
    the unweighted mean of the tasks' means (GenEval).
    """
    found = {task: [(row["entry"], float(row[field])) for row in rows if row["task"] == task] for task in TASKS}
    tasks = {task: over_captions(values) for task, values in found.items() if values}
    errors = [task["standard_error"] for task in tasks.values()]
    return {
        "tasks": tasks,
        "total": {
            "mean": statistics.fmean(task["mean"] for task in tasks.values()),
            "standard_error": math.hypot(*errors) / len(errors),
        },
    }


def over_captions(values: Iterable[tuple[int, float]]) -> dict[str, float]:
    """Of pairs (caption, value): mean, standard error and number of captions; a caption's seeds are one observation."""
    entries: dict[int, list[float]] = {}
    for entry, value in values:
        entries.setdefault(entry, []).append(value)
    means = [statistics.fmean(each) for each in entries.values()]
    error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else 0.0
    return {"mean": statistics.fmean(means), "standard_error": error, "captions": len(means)}


def compare(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Full precision, quantized, and their paired difference (same captions, same seeds).

    `samples` have an `entry`, and lists of equal length: `tasks`, `right` and `reference_right` in each.
    """
    rows = [
        {"entry": sample["entry"], "task": task, "right": got, "reference_right": wanted}
        for sample in samples
        for task, got, wanted in zip(sample["tasks"], sample["right"], sample["reference_right"], strict=True)
    ]
    paired = [{**row, "difference": float(row["right"]) - float(row["reference_right"])} for row in rows]
    return {
        "full_precision": tally(rows, "reference_right"),
        "quantized": tally(rows, "right"),
        "difference": tally(paired, "difference")["total"],
    }


def frechet(a_NF: npt.NDArray[Any], b_MF: npt.NDArray[Any]) -> float:
    """Frechet distance of two sets of features, as of two Gaussians (Heusel et al. 1706.08500).

    Biased upwards for few samples, and the more so the fewer: compare only what has the same counts.
    """
    (mean_a, root), (mean_b, other) = _gaussian(a_NF), _gaussian(b_MF)
    between = np.linalg.svd(root @ other, compute_uv=False).sum()
    spread = np.square(root).sum() + np.square(other).sum() - 2 * between
    return float(np.square(mean_a - mean_b).sum() + max(spread, 0.0))


def _gaussian(x_NF: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Mean, and the symmetric root of the covariance."""
    x = x_NF.astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(x, rowvar=False))
    return x.mean(0), (vectors * np.sqrt(values.clip(0))) @ vectors.T
