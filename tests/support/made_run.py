"""A finished run that is written by hand: its figures are few, so that a test computes them a second time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adatsq_pipe.pipeline import report
from adatsq_pipe.pipeline.config import ClusterSettings, RunConfig
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.calibration.unit_keys import DIFFERENTIABLE
from adatsq_pipe.storage import tables, tensors
from adatsq_pipe.storage.rundir import RunDir
from tests.support.made_context import FIRST, MODULATION, SECOND
from tests.support.made_store import MadeStore, make_store

PSNR = [30.0, 33.0, 36.0, 41.0]
ERRORS = [0.02, 0.05, 0.01, 0.04]
STEPS = [[0.0, 0.1, 0.4], [0.0, 0.3, 0.2], [0.0, 0.2, 0.6], [0.0, 0.2, 0.0]]
"""Relative errors of the latents by picture and step."""


def commit(context: Context, stage: str, unit: str, seconds: tuple[float, ...] = (), **more: Any) -> Path:
    """A unit with seconds (model, algebra, total, calls); its folder must be filled before, by `files`."""
    manifest, files = context.manifest(stage), more.pop("files", {})
    folder = manifest.open_unit(unit)
    for name, rows in files.items():
        tables.write(folder / name, rows)
    times = dict(zip(("model", "algebra", "total", "calls"), seconds, strict=False))
    manifest.commit(unit, seconds=times, **more)
    return manifest.unit_folder(unit)


def samples(numbers: list[int]) -> dict[str, Any]:
    names = [f"caption {i}" for i in range(4)]
    rows = [
        {
            "prompt": names[i],
            "seed": 7 + i,
            "latent_error": ERRORS[i],
            "latent_psnr": PSNR[i] - 5,
            "psnr": PSNR[i],
            "ssim": 0.9 - i / 10,
        }
        for i in numbers
    ]
    steps = [{"step": t, "error": STEPS[i][t], "psnr": 10.0 * t + i} for i in numbers for t in range(3)]
    return {"samples.parquet": rows, "steps.parquet": steps}


def store(folder: Path, **tables: Mapping[str, Any]) -> MadeStore:
    """Two batches of captions, two levels, two paths rolled out on three captions, four pictures in two units."""
    asked = {"evaluate": {"prompts": ["a", "b"], "seeds": 2}, "search": {"batches": 2, "budget": 4.25}, **tables}
    store = make_store(folder, **asked)
    c = store.context
    survey = {**store.survey(), "unused": ["blocks.0.never"], "repeated": ["blocks.0.often"]}
    commit(c, "capture", "survey", (0.0, 0.0, 1.5), value=survey)
    commit(c, "capture", "left", (0.0, 0.0, 0.5), value=[{"pattern": "norm", "count": 3}])
    commit(c, "capture", "trajectory/000", (10.0, 0.0, 12.0), value={"calls": 6, "samples": 3})
    commit(c, "capture", "trajectory/001", (5.0, 0.0, 6.0), value={"calls": 6, "samples": 1})
    commit(c, "capture", "activations/000-000", (7.0, 1.0, 10.0), micro_batch={"from": 4, "to": 2})
    commit(c, "capture", "activations/000-001", (7.0, 1.0, 10.0), micro_batch={"from": 4, "to": 2})
    commit(c, "capture", "activations/001-000", (1.0, 1.0, 5.0), micro_batch={"from": 4, "to": 1})
    layers: dict[str, tuple[float, float, str, int, int]] = {
        FIRST: (0.02, 0.01, "none", 8, 3),
        SECOND: (0.07, 0.1, "scale", 128, 6),
        MODULATION: (0.03, 0.02, "scale", 64, 8),
    }
    for name, (error, damping, smoothing, group, bits) in layers.items():
        value = {
            "error": error,
            "damping": damping,
            "smoothing": smoothing,
            "spec": {"group": group, "weight_bits": bits},
        }
        commit(c, "solve", f"layer/{name}", (1.0, 2.0, 4.0), value=value)
    store.write_scores()
    commit(c, "fisher", DIFFERENTIABLE, value={"obstacle": ""})
    commit(c, "search", "level/000", (20.0, 0.0, 30.0, 2.0), value={})
    commit(c, "search", "level/001", (10.0, 0.0, 15.0, 4.0), value={})
    commit(c, "search", "rollout/a-000", (3.0, 0.0, 4.0, 99.0), value={"calls": 6, "samples": 2})
    commit(c, "search", "rollout/a-001", (2.0, 0.0, 4.0, 99.0), value={"calls": 6, "samples": 1})
    front = {"mean_bits": 4.2, "mac_weighted_bits": 4.1, "rollout_error": 0.003, "front": 5, "policy": store.bits}
    commit(c, "search", "front", value=front)
    sizes = {
        "layers": 3,
        "layer_bytes_bf16": 800,
        "layer_bytes": 200,
        "transformer_bytes_bf16": 1200,
        "transformer_bytes": 500,
        "weight_bits": 4.375,
    }
    commit(c, "assemble", "model", (0.0, 0.0, 2.0), value=sizes)
    commit(c, "evaluate", "quantized/000", (1.0, 0.0, 3.0), files=samples([0, 1]), value={"activation_bits": 4.0})
    commit(c, "evaluate", "quantized/001", (1.0, 0.0, 3.0), files=samples([2, 3]), value={"activation_bits": 5.0})
    commit(c, "evaluate", "other", (1.0, 0.0, 3.0))
    run = RunDir.at(c.run)
    for stage, wall, facts in (
        ("capture", 20.0, {"memory": "old"}),
        ("capture", 2.5, {"memory": "fits"}),
        ("solve", 4.0, {"placement": {"workers_per_gpu": 2}}),
    ):
        run.log({"stage": stage, "fingerprint": c.fingerprints[stage], "wall": wall, **facts})
    run.log({"stage": "capture", "fingerprint": "another", "wall": 1000.0, "memory": "another"})
    run.log({"stage": "gone", "fingerprint": "another", "wall": 1000.0})
    return store


def config(store: MadeStore) -> RunConfig:
    return RunConfig(
        settings=store.context.settings,
        cluster=ClusterSettings(),
        model=Path("/somewhere/tiny-flux"),
        request={},
        images={},
    )


def summary(store: MadeStore) -> dict[str, Any]:
    return asdict(report.summarize(config(store), RunDir.at(store.context.run), store.context))


def error_of_mean(values: list[float]) -> float:
    """Of two captions a, b drawn as a, b, a, b: the standard deviation of their means over the root of two is half
    the distance between them."""
    return abs((values[0] + values[2]) / 2 - (values[1] + values[3]) / 2) / 2


class Step:
    """What `write` reads of a plan's step."""

    def __init__(self, name: str, complete: bool, fingerprint: str) -> None:
        self.stage, self.complete, self.fingerprint = self, complete, fingerprint
        self.name = name


def drawn(store: MadeStore) -> Context:
    """Pictures: full precision is red, quantized is blue; the second unit's are clips whose middle frame is so."""
    context = replace(store.context, fingerprints={**store.context.fingerprints, "reference": "r" * 64})
    for unit, rows in (("000", [0, 1]), ("001", [2, 3])):
        for stage, name, channel in (("evaluate", f"quantized/{unit}", 2), ("reference", f"draw/{unit}", 0)):
            shape = (2, 12, 12, 3) if unit == "000" else (2, 3, 12, 12, 3)
            drawn = np.zeros(shape, np.float32)
            (drawn if unit == "000" else drawn[:, 1])[..., channel] = 1
            manifest = context.manifest(stage)
            manifest.discard(name)
            folder = manifest.open_unit(name)
            tensors.write(folder, {"pictures": torch.from_numpy(drawn)})
            if stage == "evaluate":
                for file, values in samples(rows).items():
                    tables.write(folder / file, values)
            manifest.commit(name)
    return context
