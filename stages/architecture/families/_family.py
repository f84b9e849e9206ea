"""Family: corrections of the generic rules for one transformer class. Imports no torch.

A file of this package, or of another distribution that names it under the entry point group `adatsq_pipe.families`,
defines FAMILY and says in its first line why the rules fail.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points

import adatsq_pipe.stages.architecture.families as package
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.storage.fingerprint import Plain

GROUP = "adatsq_pipe.families"


@dataclass(frozen=True, kw_only=True)
class Family:
    """Corrections for one transformer class."""

    transformer: str
    """Name of the class."""
    why: str
    """Why the rules fail, in a few words."""
    blocks: tuple[str, ...] = ()
    """Names of the modules inside which linears are quantized; empty = the lists of repeated blocks."""
    leave: tuple[str, ...] = ()
    """Name endings of linears that are not quantized."""
    repeated: tuple[str, ...] = ()
    """Name endings of linears that run more than once in a call. Capture finds out by itself, and makes the first call
    once more then."""
    timestep: str = ""
    """Name of the timestep argument of a call; empty = one of the usual names, or the first number."""
    sample: str = ""
    """Name of the argument with the noisy sample; empty = the first."""
    cached_with: str = ""
    """Argument of the pipeline's call that fills the cache it passes to its denoiser; without it the cache is empty."""


@cache
def own() -> dict[str, Family]:
    """The families of this package, by transformer class."""
    names = [m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")]
    defined: list[Family] = [importlib.import_module(f"{package.__name__}.{name}").FAMILY for name in names]
    return {family.transformer: family for family in defined}


@cache
def families() -> dict[str, Family]:
    """All installed families, by transformer class.

    Raises StageError for an entry point that is no Family, and for a class with two families.
    """
    points = [(f"{point.name} = {point.value}", point.load()) for point in sorted(entry_points(group=GROUP))]
    known = dict(own())
    for where, loaded in points:
        family = getattr(loaded, "FAMILY", loaded)
        if not isinstance(family, Family):
            raise StageError(f"the entry point {where} of {GROUP} is no Family but {family!r}; fix or uninstall it")
        if family.transformer in known:
            raise StageError(f"{where}: there is a family of {family.transformer} already; uninstall one of the two")
        known[family.transformer] = family
    return known


def family_of(transformer: object) -> Family | None:
    """The family of the class of `transformer`, if there is one."""
    return families().get(type(transformer).__name__)


def timestep_name(transformer: object) -> str:
    """The name that a family gives for the timestep argument of `transformer`; "" if none does."""
    family = family_of(transformer)
    return family.timestep if family is not None else ""


def sample_name(transformer: object) -> str:
    """The name that a family gives for the noisy sample's argument of `transformer`; "" if none does."""
    family = family_of(transformer)
    return family.sample if family is not None else ""


def identity() -> dict[str, Plain]:
    """What a capture depends on besides the model and this package: the families of other distributions, if any."""
    external = {name: family for name, family in sorted(families().items()) if name not in own()}
    corrections: dict[str, Plain] = {
        name: {
            "blocks": list(family.blocks),
            "leave": list(family.leave),
            **{key: value for key in ("timestep", "sample") if (value := getattr(family, key))},
        }
        for name, family in external.items()
    }
    return {"families": corrections} if corrections else {}
