"""Recipe: transform, weight grid and solver, activation grid, allocation. A method's file gives its own values."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from adatsq_pipe.stages.base import Settings, StageError


class Recipe(Settings):
    """Every choice that makes a method."""

    transform: Literal["none", "hadamard"]
    """What is applied to activations online and folded into weights offline."""
    transform_block: int = Field(ge=1)
    """Largest Hadamard block."""
    permuted: bool
    """Put input channels in a random order before the rotation."""
    codebook: bool
    """Round weights (by row) and activations (by token) to Lloyd-Max levels of a Gaussian, not to a uniform grid."""
    smoothing: Literal["none", "smoothquant"]
    """Whether input channels are divided by something first, which multiplies the weight's columns."""
    smoothing_alpha: float = Field(ge=0, le=1)
    """How much of a channel's size moves to the weight: 0 nothing, 1 all."""
    rank: int = Field(ge=0)
    """Rank of the branch that runs beside the codes in full precision; 0 = none."""
    rank_rounds: int = Field(ge=1)
    """At most so many alternations of branch and residual."""
    temporal: bool
    """Hessians weighted by temporal Fisher information; false = all timesteps alike."""
    solver: Literal["rtn", "gptq"]
    weight_bits: Literal[2, 3, 4, 5, 6, 8]
    weight_group: int = Field(ge=0)
    """Input channels a weight scale covers; 0 = per output channel."""
    weight_symmetric: bool
    weight_clip: bool
    """Search the clipping ratio of each weight grid, or take min and max."""
    conditioning_bits: Literal[2, 3, 4, 5, 6, 8]
    """Weight bits of layers fed one vector a sample (adaLN modulation); their activations are not rounded."""
    conditioning_group: int = Field(ge=0)
    activation_symmetric: bool
    activation_group: int = Field(ge=0)
    """Channels of a token that share an activation scale; 0 = all."""
    allocation: Literal["uniform", "trellis"]
    activation_bits: int = Field(ge=2, le=16)
    """Activation bits of a uniform allocation."""


WEIGHT_FIELDS = (
    "transform", "transform_block", "permuted", "codebook", "smoothing", "smoothing_alpha", "rank", "rank_rounds",
    "solver", "weight_bits", "weight_group", "weight_symmetric", "weight_clip", "conditioning_bits",
    "conditioning_group", "activation_symmetric", "activation_group",
)  # fmt: skip


class RecipeSettings(Settings):
    """[recipe] The method, and what to change of it."""

    method: str = "adatsq"
    transform: Literal["none", "hadamard"] | None = None
    transform_block: int | None = None
    permuted: bool | None = None
    codebook: bool | None = None
    smoothing: Literal["none", "smoothquant"] | None = None
    smoothing_alpha: float | None = None
    rank: int | None = None
    rank_rounds: int | None = None
    temporal: bool | None = None
    solver: Literal["rtn", "gptq"] | None = None
    weight_bits: int | None = None
    weight_group: int | None = None
    weight_symmetric: bool | None = None
    weight_clip: bool | None = None
    conditioning_bits: int | None = None
    conditioning_group: int | None = None
    activation_symmetric: bool | None = None
    activation_group: int | None = None
    allocation: Literal["uniform", "trellis"] | None = None
    activation_bits: int | None = None


def methods() -> list[str]:
    """Names of the methods there are."""
    import adatsq_pipe.stages.methods as package

    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def resolve(table: Mapping[str, Any]) -> Recipe:
    """The recipe that a [recipe] table asks for. Raises StageError for an unknown method."""
    name = table["method"]
    if name not in methods():
        raise StageError(f"recipe.method is {name!r}; there are {', '.join(methods())}")
    base: Recipe = importlib.import_module(f"adatsq_pipe.stages.methods.{name}").RECIPE
    changes = {key: value for key, value in table.items() if key != "method" and value is not None}
    try:
        return Recipe.model_validate({**base.model_dump(), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        raise StageError(f"recipe.{first['loc'][0]} = {first['input']!r}: {first['msg'].lower()}") from None
