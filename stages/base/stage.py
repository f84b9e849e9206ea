"""What every stage is made of: settings shared by several, the Stage value, Context, Executor and units of work.

Importing this, or any stage, brings in no torch: `status` and a run with nothing to do must start at once. A worker
imports what it needs when it is opened.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from adatsq_pipe.stages.base.context import Context, Executor, Report
from adatsq_pipe.stages.base.settings import Settings
from adatsq_pipe.storage.fingerprint import Plain

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage as a value. `reads` is what its bytes depend on besides the stages it needs; `run` does what is
    missing; `expected` is the number of units once it can be known."""

    name: str
    version: int
    needs: tuple[str, ...]
    reads: Callable[[Mapping[str, Any], str], Plain]
    run: Callable[[Context, Executor, Report], None]
    expected: Callable[[Context], int | None]
    settings: type[Settings]
    shares: Mapping[str, Callable[[Mapping[str, Any], str], Plain]] = field(default_factory=dict)
    """Further folders of units, by name, with what *their* bytes depend on: for results that outlive the stage's."""


def identity(tables: Mapping[str, Mapping[str, Any]], *names: str) -> dict[str, Plain]:
    """The identity line of a stage that reads the tables `names`."""
    return {name: dict(tables[name]) for name in names}


STAGES = {
    "capture": "calibration.capture",
    "fisher": "calibration.fisher",
    "hessian": "calibration.hessian",
    "solve": "weights.solve",
    "search": "allocation.search",
    "assemble": "export.assemble",
    "evaluate": "evaluation.evaluate",
}
"""The seven stages and their modules below `adatsq_pipe.stages`, in the order of a run."""


@cache
def all_stages() -> Mapping[str, Stage]:
    """Every stage by name, in the order of a run."""
    return {name: importlib.import_module(f"adatsq_pipe.stages.{module}").STAGE for name, module in STAGES.items()}
