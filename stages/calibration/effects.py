"""End-to-end effects of rounding, read back without torch: what fisher's sweeps stored.

A sweep stores, for every caption of a batch and one random direction r ~ N(0, I), the first-order effect on
<r, final latents> of rounding each layer's tokens at each step to each width, and of rounding its weight. The mean
square over directions is the squared distance that the final latents move.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.settings import Settings
from adatsq_pipe.stages.calibration.survey import batch_count
from adatsq_pipe.stages.calibration.unit_keys import DIFFERENTIABLE, SweepKey
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.storage.fingerprint import Plain

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]


class FisherSettings(Settings):
    """[fisher]"""

    table: ClassVar[str] = "fisher"

    draws: int = Field(default=1, ge=1, le=1_000)
    """Random directions for each batch of captions; where single steps are measured, noise draws for each step."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    gradient_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, one more forward. It is done anyway where the memory plan
    has it so."""

    def identity(self) -> dict[str, Plain]:
        """Recomputed blocks give the same gradients."""
        return {key: value for key, value in super().identity().items() if key != "gradient_checkpointing"}


WIDTHS = (2, 3, 4, 5, 6, 8)
"""Activation bit-widths whose effects are stored."""


@dataclass(frozen=True, kw_only=True)
class Effects:
    """Signed effects of all sweeps. Captions and draws share the first axis."""

    activations: Array
    """[captions x draws, steps, layers, widths]; 0 for layers whose inputs are not rounded."""
    weights: Array
    """[captions x draws, steps, layers]: of rounding to nearest at the recipe's weight bits."""
    latents: Array
    """[captions x draws]: squared norm of the final latents."""

    def alike(self) -> Effects:
        """The same effects in units of each caption's own: of activations, of all roundings to 4 bits together; of
        weights, of all layers together. Captions then count alike, as in a geometric mean of their errors. Effects of a
        layer add up over steps with their signs."""
        import numpy as np  # status reads this module and needs no numpy

        activations = np.sqrt((self.activations[..., WIDTHS.index(4)].sum(1) ** 2).sum(1))
        weights = np.sqrt((self.weights.sum(1) ** 2).sum(1))
        return replace(
            self,
            activations=self.activations / np.maximum(activations, 1e-300)[:, None, None, None],
            weights=self.weights / np.maximum(weights, 1e-300)[:, None, None],
        )


def effects_of(context: Context) -> Effects:
    """The stored effects, batches and draws in their order."""
    import numpy as np  # status reads this module and needs no numpy

    from adatsq_pipe.storage import arrays  # imports zarr

    found = [context.read("fisher", unit)[1] for unit in sweep_units(context)]
    parts = {name: [arrays.read(folder, name) for folder in found] for name in ("activations", "weights", "latents")}
    return Effects(**{name: np.concatenate(each).astype(np.float64) for name, each in parts.items()})


def squared(effects_N: Array) -> Array:
    """The expected square of effects, over their first axis, from the mean absolute value: E p^2 = pi / 2 (E |p|)^2 of
    a normal p. Steadier than the mean square, which a few captions rule."""
    import numpy as np  # status reads this module and needs no numpy

    found: Array = math.pi / 2 * np.abs(effects_N).mean(0) ** 2
    return found


def sweep_units(context: Context) -> list[str]:
    """The units of all sweeps."""
    draws = context.settings[FisherSettings].draws
    return [SweepKey(batch, draw).unit for batch in range(batch_count(context)) for draw in range(draws)]


def is_end_to_end(context: Context) -> bool:
    """Whether fisher measured end-to-end effects: the recipe wants them, and the pipeline's loop allows it."""
    return context.settings[Recipe].sensitivity == "trajectory" and not obstacle_of(context)


def obstacle_of(context: Context) -> str:
    """Why the pipeline's loop cannot be differentiated, or ""."""
    return str(context.read("fisher", DIFFERENTIABLE)[0].value["obstacle"])
