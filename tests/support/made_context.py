"""The Context of a made-up run: the real defaults of all settings, with changes for a model of three tiny layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adatsq_pipe.pipeline.config import kinds
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.run_settings import ModelRef, RunSettings
from adatsq_pipe.stages.base.settings import Settings
from adatsq_pipe.stages.methods._recipe import Recipe, resolve

FIRST, SECOND, MODULATION = "blocks.0.first", "blocks.0.second", "blocks.0.modulation"
"""Two layers that share their input, and one whose input is one vector per sample."""
SHAPES = {FIRST: (24, 16), SECOND: (8, 16), MODULATION: (16, 8)}
"""(out, in) of every layer, in survey order."""
TOKENS = 5
"""Tokens of one sample."""
STAGES = ("capture", "fisher", "hessian", "solve", "search", "assemble", "evaluate", "reference")
DEFAULTS: dict[str, dict[str, Any]] = {
    "model": {"call": {"num_inference_steps": 3}},
    "data": {"prompts": ["a red circle", "a blue square", "two crosses", "a white star"], "batch": 2, "seed": 3},
    "compute": {"device": "cpu", "dtype": "float32"},
    "capture": {"rows": 6, "block": 2},
    "recipe": {"method": "adatsq", "conditioning_group": 0},
    "search": {"rollout_prompts": 2},
    "evaluate": {"prompts": ["a green ring", "a black dot"]},
}
"""What differs from the real defaults of all settings. Capture's blocks are the steps 0-1 and 2."""


def made_context(run: Path, model: Path, /, **overrides: Mapping[str, Any]) -> Context:
    """A Context with all defaults, DEFAULTS and `overrides`, and a fingerprint for each stage.

    An override is a table of keys, e.g. `hessian={"temporal": False}`.
    """
    unknown = set(overrides) - set(kinds())
    assert not unknown, f"there are no tables {unknown}"
    tables: list[Settings] = []
    for name, kind in kinds().items():
        values = {**DEFAULTS.get(name, {}), **overrides.get(name, {})}
        tables.append(resolve(values) if kind is Recipe else kind.model_validate(values))
    prints = {name: str(place) * 64 for place, name in enumerate(STAGES)}
    return Context(settings=RunSettings(tables), run=str(run), model=ModelRef(path=Path(model)), fingerprints=prints)
