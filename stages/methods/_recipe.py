"""Recipe: transform, weight grid and solver, activation grid, allocation. A method's file gives its own values."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.settings import Settings, first_error


class Recipe(Settings):
    """[recipe] The method, and every choice that makes it: a method's own value wherever the table has none."""

    table: ClassVar[str] = "recipe"

    method: str = "endpoint"
    """One of the files of stages/methods."""

    transform: Literal["none", "hadamard", "regular", "greedy"]
    """What is applied to activations online and folded into weights offline: nothing, Sylvester's Hadamard matrix, a
    regular one, whose columns all have the same sum, or two rotations that are found from captured inputs by their
    largest values, with an order of channels between that evens out the blocks."""
    transform_block: int = Field(ge=1)
    """Largest block of the rotation."""
    rotation_steps: int = Field(default=256, ge=1, le=10_000)
    """With transform = "greedy": steps of which the one with the least peak is kept."""
    permuted: bool
    """Put input channels in another order before the rotation."""
    channel_order: Literal["random", "moment"] = "random"
    """With permuted: a random order, or by the second moments of inputs and weights, so that channels alike share a
    group; the latter only in layers whose output error it lowers."""
    codebook: bool
    """Round weights (by row) and activations (by token) to Lloyd-Max levels of a Gaussian, not to a uniform grid."""
    number_format: Literal["int", "nvfp4", "mxfp4"] = "int"
    """Numbers of weights and tokens: whole ones on a grid (or a codebook), or 4-bit floats in blocks of 16 or 32."""
    smoothing: Literal["none", "smoothquant", "migration"]
    """What input channels are divided by first, which multiplies the weight's columns: nothing, SmoothQuant's balance,
    or whole numbers in outlier channels alone, as many channels as give the least output error."""
    smoothing_alpha: float = Field(ge=0, le=1)
    """How much of a channel's size moves to the weight: 0 nothing, 1 all."""
    smoothing_grid: int = Field(ge=1, le=1_000)
    """Exponents tried for every layer, evenly between 0 and 1, by its output error; 1 = smoothing_alpha alone."""
    smoothing_error: Literal["weight", "tokens"] = "weight"
    """The output error that chooses an exponent: of the rounded weight alone, or of rounded tokens too, added up over
    the captured inputs of all timesteps."""
    smoothing_over: Literal["all", "noisiest", "salience", "momentum"]
    """An input channel's size: its peak over all timesteps, at the noisiest, weighted by Spearman's rho, or averaged
    with a momentum of 0.99."""
    smoothing_skip: tuple[str, ...]
    """Endings of the names of layers that are not smoothed."""
    smoothing_layers: Literal["all", "gelu", "not_gelu"] = "all"
    """Layers that are smoothed and shifted: all, those whose inputs look like outputs of GELU, or the others."""
    smoothing_fold: bool
    """Fold the smoothing into the layer before, where one can take it (modulation, value projection), instead of
    multiplying at run time."""
    rank: int = Field(ge=0)
    """Rank of the branch that runs beside the codes in full precision; 0 = none."""
    rank_rounds: int = Field(ge=1, le=10_000)
    """At most so many alternations of branch and residual."""
    sensitivity: Literal["step", "trajectory"]
    """What fisher measures: the effect of a layer on the denoiser's output at a step (the paper), or on the final
    latents, by a gradient carried back through the pipeline's own loop."""
    temporal: bool
    """Hessians weighted by temporal Fisher information; false = all timesteps alike."""
    solver: Literal["rtn", "gptq"]
    weight_bits: Literal[2, 3, 4, 5, 6, 8]
    weight_budget: float = Field(ge=0, le=8)
    """Mean weight bits over parameters, divided among the layers by what rounding them does to the final latents; 0 =
    weight_bits everywhere. A method that has one takes weight_bits where that is set alone."""
    weight_group: int = Field(ge=0)
    """Input channels a weight scale covers; 0 = per output channel."""
    group_fit: bool
    """Where a group does not divide a layer's width: take the largest divisor below it (the report says where), or
    refuse."""
    group_search: tuple[int, ...]
    """Group sizes, of weight and activations alike, out of which an evolutionary search chooses for every layer; the
    mean over layers stays at least weight_group. Empty = weight_group everywhere."""
    weight_symmetric: bool
    magnitude_penalty: float = Field(default=0.0, ge=0, le=1)
    """Share of a row's l1 norm by which its largest weights are pressed down before the solve, at the least change of
    the output; 0 = weights as they are."""
    weight_clip: bool
    """Search the clipping ratio of each weight grid, or take min and max."""
    conditioning_bits: Literal[2, 3, 4, 5, 6, 8]
    """Weight bits of layers fed one vector a sample (adaLN modulation); their activations are not rounded."""
    conditioning_group: int = Field(ge=0)
    activation_symmetric: bool
    activation_group: int = Field(ge=0)
    """Channels of a token that share an activation scale; 0 = all."""
    time_groups: int = Field(ge=0)
    """Groups of timesteps with one calibrated activation scale each; 0 = every token has its own, dynamically."""
    time_search: bool
    """With time_groups: choose the scales, and the weight's, by the output error under the loss's curvature; false =
    min and max."""
    regions: bool
    """With time_groups: inputs after GELU, whose negative values are small, have a fixed finer grid for those."""
    clip_bins: int = Field(default=0, ge=0, le=255)
    """Bins of timesteps with a clipping ratio each, searched by the layer's output error, that narrows the range of
    every token's own scale; 0 = no clipping."""
    shift_groups: int = Field(default=0, ge=0, le=255)
    """Groups of adjacent timesteps, found by hierarchical clustering, with a vector each that is subtracted from the
    input's channels before rounding and made up for in the bias; 0 = no shift."""
    shift_momentum: float = Field(default=0.0, ge=0, lt=1)
    """With shift_groups = 1: momentum with which the shift follows the midpoints of batches; 0 = the midpoints' mean
    over timesteps."""
    allocation: Literal["uniform", "trellis", "decoupled", "lagrangian", "first_last", "bisection"]
    """Activation bits: the same everywhere, searched over timesteps (AdaTSQ), by layer and kind of layer (ViDiT-Q), the
    exact division of the budget over timesteps and layers, by what `sensitivity` measures, 16 in the first and last
    `end_steps` and activation_bits between, or one width a timestep by the error that it alone causes (TMPDiff)."""
    activation_bits: int = Field(ge=2, le=16)
    """Activation bits of a uniform allocation, and of first_last between the ends."""
    end_steps: int = Field(default=0, ge=0)
    """With allocation = "first_last": steps at either end whose activations are not rounded; 0 = as many as
    search.budget pays for."""

    @model_validator(mode="after")
    def _goes_together(self) -> Recipe:
        if wrong := [size for size in self.group_search if size < 1]:
            raise ValueError(
                f"group_search has {wrong[0]}; write sizes of 1 or more, or [] for weight_group everywhere"
            )
        if self.time_groups and self.allocation != "uniform":
            raise ValueError("time_groups calibrates scales at activation_bits; it needs allocation = 'uniform'")
        if self.clip_bins and (self.allocation != "uniform" or self.time_groups or self.codebook):
            raise ValueError("clip_bins needs allocation = 'uniform' and tokens' own scales: no time_groups, codebook")
        if self.shift_groups and (self.time_groups or self.group_search or self.smoothing_fold):
            raise ValueError(
                "shift_groups moves inputs as the model runs; it needs time_groups = 0, group_search = [], "
                "smoothing_fold = false"
            )
        if self.shift_groups and self.temporal:
            raise ValueError("shift_groups has Gram matrices of its own, timesteps alike; it needs temporal = false")
        if self.shift_momentum and self.shift_groups != 1:
            raise ValueError("shift_momentum is for one shift of all timesteps; it needs shift_groups = 1")
        if self.smoothing == "migration" and (self.rank or self.codebook or self.number_format != "int"):
            raise ValueError("smoothing = 'migration' needs a uniform grid: no rank, codebook or number_format")
        if self.smoothing == "migration" and (self.time_groups or self.smoothing_fold or self.smoothing_grid > 1):
            raise ValueError(
                "smoothing = 'migration' searches channels for tokens' own scales; it needs time_groups = 0, "
                "smoothing_fold = false, smoothing_grid = 1"
            )
        if self.smoothing_layers != "all" and self.smoothing_fold:
            raise ValueError("smoothing_layers sees a layer's input; it needs smoothing_fold = false")
        if self.end_steps and self.allocation != "first_last":
            raise ValueError("end_steps is for allocation = 'first_last'; set end_steps = 0")
        if self.time_groups and (self.rank or self.codebook or self.solver != "rtn" or self.weight_group):
            raise ValueError("time_groups chooses its own weight scales; it needs solver rtn, no rank, codebook, group")
        if self.smoothing_fold and (self.permuted or self.smoothing_grid > 1):
            raise ValueError("smoothing_fold is for one exponent and channels in their own order")
        if self.smoothing_error == "tokens" and self.smoothing == "none":
            raise ValueError("smoothing_error = 'tokens' chooses a smoothing exponent; it needs smoothing")
        if self.transform == "greedy" and (self.smoothing_fold or self.channel_order == "moment"):
            raise ValueError("transform = 'greedy' needs smoothing_fold = false and channel_order = 'random'")
        if self.channel_order == "moment" and (not self.permuted or self.smoothing != "none"):
            raise ValueError("channel_order = 'moment' is for permuted = true and no smoothing")
        if self.number_format != "int" and (self.codebook or self.rank or self.time_groups or self.solver != "rtn"):
            raise ValueError("number_format rounds to nearest; it needs solver rtn, no codebook, rank or time_groups")
        if self.number_format != "int" and (self.weight_group or self.activation_group or self.clip_bins):
            raise ValueError(
                "number_format has blocks of its own; it needs no weight_group, activation_group, clip_bins"
            )
        if self.number_format != "int" and (self.allocation != "uniform" or self.sensitivity == "trajectory"):
            raise ValueError("number_format has one width; it needs allocation = 'uniform' and sensitivity = 'step'")
        if self.magnitude_penalty and (self.codebook or self.rank or self.time_groups):
            raise ValueError("magnitude_penalty needs a uniform grid: no codebook, rank or time_groups")
        if (self.regions or self.time_search) and not self.time_groups:
            raise ValueError("regions and time_search are for calibrated scales; they need time_groups")
        if self.weight_budget and self.sensitivity != "trajectory":
            raise ValueError(
                "weight_budget divides bits by their effect on the final latents; it needs sensitivity = 'trajectory'"
            )
        if self.weight_budget and not 2 <= self.weight_budget <= 8:
            raise ValueError(f"weight_budget is {self.weight_budget:g}; it is 0 or lies in 2..8")
        if self.sensitivity == "trajectory" and (self.rank or self.codebook or self.time_groups or self.group_search):
            raise ValueError(
                "sensitivity = 'trajectory' rounds to nearest on a grid; it needs no rank, codebook, time_groups or "
                "group_search"
            )
        if self.sensitivity == "trajectory" and self.smoothing_fold:
            raise ValueError("sensitivity = 'trajectory' smooths a layer's input; it needs smoothing_fold = false")
        if self.sensitivity == "trajectory" and self.smoothing_grid > 1 and self.smoothing_error == "weight":
            raise ValueError(
                "sensitivity = 'trajectory' comes before the Gram matrices that choose an exponent by the weight's "
                "error; it needs smoothing_error = 'tokens' or smoothing_grid = 1"
            )
        return self


LATER = (
    "channel_order", "clip_bins", "magnitude_penalty", "number_format", "rotation_steps", "shift_groups",
    "shift_momentum", "smoothing_error", "smoothing_layers",
)  # fmt: skip
"""Fields that a run made before they existed does not name: at their defaults they leave its identity as it was."""
NOT_OF_WEIGHTS = ("method", "sensitivity", "temporal", "allocation", "activation_bits", "end_steps")
"""Fields that the solved weights do not depend on (`temporal` only through the Hessian)."""


def at_default(recipe: Recipe) -> set[str]:
    """Those of LATER that a recipe has at their defaults."""
    return {name for name in LATER if getattr(recipe, name) == Recipe.model_fields[name].default}


def methods() -> list[str]:
    """Names of the methods there are."""
    import adatsq_pipe.stages.methods as package  # its modules import this one

    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def variants(name: str) -> list[dict[str, Any]]:
    """What `compare` tries of a method: as published (no change), and with its main knob turned. Keys are the recipe's,
    or those of another table as "table.key"."""
    return [{}, *importlib.import_module(f"adatsq_pipe.stages.methods.{name}").VARIANTS]


def resolve(table: Mapping[str, Any]) -> Recipe:
    """The recipe of a [recipe] table: the method's own, with the table's changes. Raises StageError."""
    name = table.get("method", Recipe.model_fields["method"].default)
    if name not in methods():
        raise StageError(f"unknown recipe.method {name!r}; choose from {', '.join(methods())}")
    base: Recipe = importlib.import_module(f"adatsq_pipe.stages.methods.{name}").RECIPE
    own = base.model_dump()
    bits = table.get("weight_bits")
    if base.weight_budget and isinstance(bits, int | float):
        own["weight_budget"] = float(bits)
    try:
        return Recipe.model_validate({**own, **table, "method": name})
    except ValidationError as error:
        raise StageError(first_error(error, "recipe")) from None
