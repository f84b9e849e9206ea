"""What a run cost, from the seconds that its units took."""

from __future__ import annotations

from adatsq_pipe.stages.allocation.trellis import SearchSettings
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.calibration.unit_keys import trajectory_unit
from adatsq_pipe.storage.manifest import Manifest
from adatsq_pipe.storage.rundir import RunDir


def search_cost(context: Context) -> dict[str, float]:
    """What the search cost, in equivalents of one full-precision trajectory of the same captions.

    `by_calls` counts denoiser calls (each weighted by its captions), `by_seconds` the model compute they took.
    """
    capture, search = context.manifest("capture"), context.manifest("search")
    units = list(search.markers().values())
    levels = [m for m in units if m.unit.startswith(("level/", "sensitivity/"))]
    rollouts = [m for m in units if m.unit.startswith("rollout/")]
    batches = context.settings[SearchSettings].batches if rollouts else 1
    reference = [capture.read(trajectory_unit(batch)) for batch in range(batches)]
    captions = sum(m.value["samples"] for m in reference)
    calls = sum(m.calls for m in levels)
    few = min(context.settings[SearchSettings].rollout_prompts, reference[0].value["samples"])
    calls += sum(m.value["calls"] * m.value.get("samples", few) for m in rollouts) / captions
    spent = sum(m.seconds["model"] for m in (*levels, *rollouts))
    return {
        "fp_trajectories_by_calls": calls / reference[0].value["calls"],
        "fp_trajectories_by_seconds": spent / sum(m.seconds["model"] for m in reference),
    }


def capture_cost(context: Context) -> float:
    """Worker seconds of the capture over its bare forwards: each call of the recorded runs, made once."""
    units = list(context.manifest("capture").markers().values())
    bare = sum(m.seconds["model"] for m in units if m.unit.startswith("trajectory/"))
    return sum(m.seconds["total"] for m in units) / bare


def seconds(run: RunDir, context: Context) -> dict[str, dict[str, float]]:
    """Per stage: wall time over all tries, and the workers' seconds split into model, linear algebra and overhead."""
    walls: dict[str, float] = {}
    for entry in run.log_entries():
        if context.fingerprints.get(entry["stage"]) == entry["fingerprint"]:
            walls[entry["stage"]] = walls.get(entry["stage"], 0.0) + entry["wall"]
    return {stage: {"wall": walls.get(stage, 0.0), **_spent(context.manifest(stage))} for stage in context.fingerprints}


def _spent(manifest: Manifest) -> dict[str, float]:
    spent = [marker.seconds for marker in manifest.markers().values()]
    model, algebra, total = (sum(s.get(k, 0.0) for s in spent) for k in ("model", "algebra", "total"))
    return {"model": model, "algebra": algebra, "overhead": total - model - algebra}
