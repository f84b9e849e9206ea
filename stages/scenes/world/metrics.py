"""Means and standard errors of many verdicts, paired differences, and the Frechet distance. Imports no torch.

Pictures of one caption with several seeds resemble each other, so a caption counts as one observation.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from adatsq_pipe.stages.scenes.world import captions, motions

TASKS = (*captions.TASKS, *motions.TASKS)


class TaskMeans(TypedDict):
    """`tasks`: "mean", "standard_error" and "captions" by task; `total`: "mean" and "standard_error" of all tasks."""

    tasks: dict[str, dict[str, float]]
    total: dict[str, float]


class Comparison(TypedDict):
    """The scores of both models, and the "mean" and "standard_error" of their paired difference."""

    full_precision: TaskMeans
    quantized: TaskMeans
    difference: dict[str, float]


def task_means(rows: Sequence[Mapping[str, Any]], field: str) -> TaskMeans:
    """Mean of `field` per task, and their unweighted mean (GenEval's total).

    `rows` have `task`, `entry` (the caption's index) and a number `field`.
    """
    by_task = {task: [(row["entry"], float(row[field])) for row in rows if row["task"] == task] for task in TASKS}
    tasks = {task: caption_mean(values) for task, values in by_task.items() if values}
    errors = [task["standard_error"] for task in tasks.values()]
    return {
        "tasks": tasks,
        "total": {
            "mean": statistics.fmean(task["mean"] for task in tasks.values()),
            "standard_error": math.hypot(*errors) / len(errors),
        },
    }


def caption_mean(pairs: Iterable[tuple[int, float]]) -> dict[str, float]:
    """Mean over captions of pairs (caption, value), its standard error, and the number of captions.

    The values of one caption are averaged first. The error is 0 for a single caption.
    """
    values: dict[int, list[float]] = {}
    for entry, value in pairs:
        values.setdefault(entry, []).append(value)
    means = [statistics.fmean(each) for each in values.values()]
    error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else 0.0
    return {"mean": statistics.fmean(means), "standard_error": error, "captions": len(means)}


def compare(samples: Sequence[Mapping[str, Any]]) -> Comparison:
    """Scores at full precision, quantized, and their paired difference (same captions, same seeds).

    Each sample has an `entry` and three lists of equal length: `tasks`, `right` and `reference_right`.
    """
    rows = [
        {"entry": sample["entry"], "task": task, "right": right, "reference_right": reference}
        for sample in samples
        for task, right, reference in zip(sample["tasks"], sample["right"], sample["reference_right"], strict=True)
    ]
    paired = [{**row, "difference": float(row["right"]) - float(row["reference_right"])} for row in rows]
    return {
        "full_precision": task_means(rows, "reference_right"),
        "quantized": task_means(rows, "right"),
        "difference": task_means(paired, "difference")["total"],
    }


def frechet_distance(a_NF: npt.NDArray[np.floating], b_MF: npt.NDArray[np.floating]) -> float:
    """Frechet distance of two feature sets `[N, F]`, `[M, F]`, as of two Gaussians (Heusel et al. 1706.08500, eq. 6).

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)). It is biased upwards, more so for fewer samples: compare sets of
    the same size only.
    """
    (mean_a, root_a), (mean_b, root_b) = _gaussian(a_NF), _gaussian(b_MF)
    between = np.linalg.svd(root_a @ root_b, compute_uv=False).sum()
    spread = np.square(root_a).sum() + np.square(root_b).sum() - 2 * between
    return float(np.square(mean_a - mean_b).sum() + max(spread, 0.0))


def _gaussian(x_NF: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
    """Mean, and the symmetric square root of the covariance (divided by N - 1); a single sample has no spread."""
    x = x_NF.astype(np.float64)
    if len(x) == 1:
        return x[0], np.zeros((x.shape[1], x.shape[1]))
    values, vectors = np.linalg.eigh(np.cov(x, rowvar=False))
    return x.mean(0), (vectors * np.sqrt(values.clip(0))) @ vectors.T
