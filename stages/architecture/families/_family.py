"""Family: what the generic rules get wrong about one transformer class, and how they are told. Imports no torch.

A file of this package, or of another distribution that names it under the entry point group `adatsq_pipe.families`,
defines FAMILY and says in its first line why the rules fail.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from adatsq_pipe.stages.base.errors import StageError

GROUP = "adatsq_pipe.families"


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is said of a transformer class."""

    transformer: str
    """Name of the class."""
    why: str
    """Why the rules need to be told, in a few words."""
    blocks: tuple[str, ...] = ()
    """Names of the modules inside which linears are quantized; empty = the lists of repeated blocks, as ever."""
    leave: tuple[str, ...] = ()
    """Endings of names of linears that stay as they are."""
    timestep: str = ""
    """Name of the timestep among the arguments of a call; empty = one of the usual names, or the first number."""
    sample: str = ""
    """Name of the noisy sample among them; empty = the first."""
    cached_with: str = ""
    """Argument of the pipeline's call without which the cache that it passes to its denoiser stays empty."""


@cache
def own() -> dict[str, Family]:
    """Those of this package, by transformer class."""
    import adatsq_pipe.stages.architecture.families as package

    names = [m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")]
    found: list[Family] = [importlib.import_module(f"{package.__name__}.{name}").FAMILY for name in names]
    return {family.transformer: family for family in found}


@cache
def families() -> dict[str, Family]:
    """All there are, by transformer class. Raises StageError for one that is no Family, or is given twice."""
    points = [(f"{point.name} = {point.value}", point.load()) for point in sorted(entry_points(group=GROUP))]
    known = dict(own())
    for where, loaded in points:
        family = getattr(loaded, "FAMILY", loaded)
        if not isinstance(family, Family):
            raise StageError(f"the entry point {where} of {GROUP} is no Family but {family!r}; mend or uninstall it")
        if family.transformer in known:
            raise StageError(f"{where}: there is a family of {family.transformer} already; uninstall one of the two")
        known[family.transformer] = family
    return known


def family_of(transformer: object) -> Family | None:
    """What is said of the class of `transformer`, if anything is."""
    return families().get(type(transformer).__name__)


def timestep_name(transformer: object) -> str:
    """What a family says the timestep's argument of `transformer` is; "" if none does."""
    family = family_of(transformer)
    return family.timestep if family is not None else ""


def sample_name(transformer: object) -> str:
    """What a family says the noisy sample's argument of `transformer` is; "" if none does."""
    family = family_of(transformer)
    return family.sample if family is not None else ""


def identity() -> dict[str, Any]:
    """What the bytes of a capture depend on besides the model and this package: the families that others bring;
    nothing where there are none."""
    brought = {name: family for name, family in sorted(families().items()) if name not in own()}
    told: dict[str, Any] = {
        name: {
            "blocks": list(family.blocks),
            "leave": list(family.leave),
            **{key: value for key in ("timestep", "sample") if (value := getattr(family, key))},
        }
        for name, family in brought.items()
    }
    return {"families": told} if told else {}
