"""Stage: one stage as a value, and the table of all of them.

Importing this, or any stage, brings in no torch: `status` and a run with nothing to do must start at once. A worker
imports what it needs when it is opened.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from adatsq_pipe.stages.base.context import Context, Executor, Report
from adatsq_pipe.stages.base.run_settings import RunSettings
from adatsq_pipe.stages.base.settings import Settings
from adatsq_pipe.storage.fingerprint import Plain


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage as a value. `reads(settings, model digest)` is what its bytes depend on besides the stages it needs;
    `run` does what is missing; `expected` is the number of units once it can be known."""

    name: str
    version: int
    needs: tuple[str, ...]
    reads: Callable[[RunSettings, str], Plain]
    run: Callable[[Context, Executor, Report], None]
    expected: Callable[[Context], int | None]
    settings: type[Settings]


STAGES = {
    "capture": "calibration.capture",
    "fisher": "calibration.fisher",
    "hessian": "calibration.hessian",
    "solve": "weights.solve",
    "search": "allocation.search",
    "assemble": "export.assemble",
    "reference": "evaluation.reference",
    "evaluate": "evaluation.evaluate",
}
"""The stages in the order of a run, and their modules below `adatsq_pipe.stages`."""


@cache
def all_stages() -> Mapping[str, Stage]:
    """Every stage by name, in the order of a run."""
    return {name: importlib.import_module(f"adatsq_pipe.stages.{module}").STAGE for name, module in STAGES.items()}
