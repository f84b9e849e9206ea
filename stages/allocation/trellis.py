"""The trellis that is searched: which bits every candidate gives every layer at every step, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from adatsq_pipe.stages.allocation.digest import digest_of
from adatsq_pipe.stages.allocation.lagrangian import Costs
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.settings import Settings
from adatsq_pipe.stages.calibration.scores import fisher_scores
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY, Policy, bits_by_fisher
from adatsq_pipe.storage.fingerprint import Plain

if TYPE_CHECKING:
    from adatsq_pipe.stages.numerics.beam import Beam, Choices

BEAM_FACTORS = (0.25, 4.0)
"""Multipliers of the beam's other candidates, relative to the allocation's own: more bits, and fewer."""

SHARPEST = 16.0
"""Largest exponent on a Fisher score: above it powers of scores overflow."""
WEIGHTS_ALONE = -1
"""The candidate of no rounded activations."""


class SearchSettings(Settings):
    """[search]"""

    table: ClassVar[str] = "search"

    bits: tuple[int, ...] = ()
    """Activation bit-widths to choose from, rising. Empty: 3 4 8, as in AdaTSQ's paper; 3 4 5 6 8 for a lagrangian
    allocation, with 2 if the budget is below 3.5."""
    budget: float = Field(default=4.0, le=16)
    """Mean activation bits over steps and layers that the policy may have."""
    price: Literal["bits", "macs"] = "bits"
    """What the budget of a lagrangian allocation counts: mean bits over steps and layers (the paper), or bits weighted
    by multiply-accumulates. Both are reported."""
    beam: bool = False
    """Of a lagrangian allocation: walk a beam as well, over its rows at a quarter of its multiplier, at the multiplier,
    and at four times that."""
    candidates: tuple[tuple[float, float], ...] = Field(default=((0.0, 0.0), (0.25, 0.125)), min_length=1)
    """Candidate policies as (within, across): exponents on the Fisher score of a layer within its step, and of the step
    among all. 0 ignores the score, 1 allocates in proportion to the loss that it predicts."""
    width: int = Field(default=2, ge=1, le=1_024)
    """Paths that survive each step."""
    error: Literal["state", "output"] = "state"
    """Error of a step: of the latents it leads to, or of the denoiser's output."""
    batches: int = Field(default=1, ge=1)
    """Calibration batches on which the trellis is evaluated, from the first."""
    samples: int = Field(default=0, ge=0)
    """Captions in one unit of work; 0 = all of a batch at once, which is quickest while few workers share a level.
    A level has width x candidates x captions / samples units (by default 2 x 2 x 8 / 8): lower it, down to 1, where
    that is less than there are workers, or where the denoiser is so large that one caption fills a GPU. Results
    depend on it, because batches of other sizes round differently."""
    rollout_prompts: int = Field(default=8, ge=1)
    """Captions on which survivors are re-scored, of as many batches as the trellis has, those after it if there are
    any."""

    @model_validator(mode="after")
    def _possible(self) -> SearchSettings:
        if list(self.bits) != sorted(set(self.bits)) or not all(2 <= b <= 8 for b in self.bits):
            raise ValueError(f"bits must rise and lie in 2..8, not {list(self.bits)}")
        if not self.bits and self.budget < 2:
            raise ValueError(f"a budget of {self.budget:g} mean bits cannot be met: the fewest are 2")
        if self.bits and self.budget < self.bits[0] - 1e-9:
            raise ValueError(
                f"a budget of {self.budget:g} mean bits cannot be met: the fewest of search.bits {list(self.bits)} is "
                f"{self.bits[0]}; raise search.budget or add a smaller width"
            )
        for sharpness in self.candidates:
            if min(sharpness) < 0 or max(sharpness) > SHARPEST:
                raise ValueError(
                    f"candidate {list(sharpness)} must be two numbers of at least 0 and at most {SHARPEST:g}: layers, "
                    "steps"
                )
        return self

    def identity(self) -> dict[str, Plain]:
        """All settings, less those added later while they have the value that makes no difference."""
        neutral = {"batches": 1, "samples": 0, "price": "bits", "beam": False}
        return {key: value for key, value in super().identity().items() if key not in neutral or value != neutral[key]}


def widths_of(settings: SearchSettings, allocation: str) -> tuple[int, ...]:
    """The activation bit-widths that a search chooses from."""
    if settings.bits or allocation != "lagrangian":
        return settings.bits or (3, 4, 8)
    return (2, 3, 4, 5, 6, 8) if settings.budget < 3.5 else (3, 4, 5, 6, 8)


def check_budget(settings: SearchSettings, allocation: str) -> None:
    """Raise StageError if the smallest width is above the budget."""
    least = widths_of(settings, allocation)[0]
    if allocation not in ("uniform", "first_last") and settings.budget < least - 1e-9:
        raise StageError(
            f"a budget of {settings.budget:g} mean bits cannot be met: the fewest of recipe.allocation = "
            f"'{allocation}' is {least}; raise search.budget or set search.bits with a smaller width"
        )


class Trellis:
    """The trellis of one run: bits of every candidate at every step, over the layers that have activation bits."""

    def __init__(self, context: Context) -> None:
        self.settings = context.settings[SearchSettings]
        self.survey = survey_of(context)
        rows = self.survey.layers
        rounded = [i for i, row in enumerate(rows) if row.rounded]
        used = {i: set(self.survey.steps_of(rows[i])) for i in rounded}
        self.rounded = [[i for i in rounded if t in used[i]] for t in range(self.survey.steps)]
        """At every step, the layers that are used and have activation bits."""
        self._base = [WEIGHT_ONLY] * len(rows)
        self._macs = [row.macs or 0 for row in rows]
        allocation = context.settings[Recipe].allocation
        widths = widths_of(self.settings, allocation)
        self.costs: Costs | None = None
        """What a lagrangian allocation weighs against the price."""
        self.policies: list[tuple[tuple[int, ...], ...]]
        """What every candidate would be over all steps, [candidate][step][layer]."""
        if allocation == "lagrangian":
            self.costs = Costs(context, self.survey, self.rounded, widths)
            walk = self.costs.walk(self.settings.price)
            own, multiplier = walk.at_budget(self.settings.budget)
            steps = [walk.at_multiplier(multiplier * factor) for factor in BEAM_FACTORS if self.settings.beam]
            self.policies = [self.costs.rows(choice.tolist()) for choice in (own, *steps)]
        else:
            scores_TL = fisher_scores(context)
            scores = [row[here].tolist() for row, here in zip(scores_TL, self.rounded, strict=True)]
            self.policies = [
                bits_by_fisher(scores, widths, self.settings.budget, sharpness)
                for sharpness in self.settings.candidates
            ]

    @property
    def prices(self) -> tuple[tuple[float, ...], ...]:
        """Mean bits (of the price that the budget counts) that every candidate of every step adds to a path, times the
        number of steps."""
        weights = [[1] * len(here) for here in self.rounded]
        if self.costs is not None and self.settings.price == "macs":
            weights = self._weights
        per_layer = len(self.rounded) / sum(map(sum, weights))
        return tuple(
            tuple(sum(b * w for b, w in zip(row[t], weights[t], strict=True)) * per_layer for row in self.policies)
            for t in range(len(self.rounded))
        )

    @property
    def _weights(self) -> list[list[int]]:
        """Multiply-accumulates of the rounded layers of every step."""
        return [[self._macs[i] for i in here] for here in self.rounded]

    @property
    def even(self) -> list[Choices]:
        """The paths that have the same candidate at every step and are policies of the budget."""
        candidates = range(len(self.policies) if self.costs is None else 1)
        return [(c,) * len(self.rounded) for c in candidates]

    @property
    def weights_alone(self) -> Choices:
        """The path whose activations are not rounded. It is no candidate of the beam."""
        return (WEIGHTS_ALONE,) * len(self.rounded)

    def bits_of(self, step: int, candidate: int) -> tuple[int, ...]:
        """Bits of the rounded layers of a step."""
        if candidate == WEIGHTS_ALONE:
            return (WEIGHT_ONLY,) * len(self.rounded[step])
        return self.policies[candidate][step]

    def whole_row(self, step: int, bits: tuple[int, ...]) -> tuple[int, ...]:
        """Bits of all layers at a step: those of the rounded ones, and 16 for those weight-only or not used."""
        row = list(self._base)
        for i, b in zip(self.rounded[step], bits, strict=True):
            row[i] = b
        return tuple(row)

    def rounded_bits(self, choices: Choices) -> tuple[tuple[int, ...], ...]:
        """Bits along a path, [step][rounded layer]: steps may differ in their layers."""
        return tuple(self.bits_of(t, c) for t, c in enumerate(choices))

    def policy(self, choices: Choices) -> Policy:
        """The policy of a whole path, over all layers."""
        return Policy(tuple(self.whole_row(t, row) for t, row in enumerate(self.rounded_bits(choices))))

    def mean_bits(self, choices: Choices) -> float:
        """Mean bits of a path over its steps and rounded layers."""
        rows = self.rounded_bits(choices)
        return sum(map(sum, rows)) / sum(map(len, rows))

    def mac_weighted_bits(self, choices: Choices) -> float:
        """Mean bits of a path, every rounded layer weighted by its multiply-accumulates."""
        return self._mac_mean(self.rounded_bits(choices))

    def _mac_mean(self, rows: Sequence[Sequence[int]]) -> float:
        """Mean of bits [step][rounded layer], weighted by multiply-accumulates."""
        spent: float = sum(
            b * m for row, weights in zip(rows, self._weights, strict=True) for b, m in zip(row, weights, strict=True)
        )
        total: float = sum(map(sum, self._weights))
        return spent / (total or 1)

    def predicted(self, choices: Choices) -> float | None:
        """The error that the activations of a path add to the final latents, to first order; None where only steps were
        measured."""
        if self.costs is None:
            return None
        index = {bits: k for k, bits in enumerate(self.costs.widths)}
        return self.costs.predicted([index[b] for row in self.rounded_bits(choices) for b in row])

    def all_budgets(self) -> list[dict[str, Any]]:
        """Rows of the front that were not rolled out: the allocations at every tenth of a bit, `predicted_error` of the
        activations alone. Empty without costs."""
        if self.costs is None:
            return []
        walk, found = self.costs.walk(self.settings.price), list[dict[str, Any]]()
        least, most = self.costs.widths[0], self.costs.widths[-1]
        for tenths in range(10 * least, 10 * most + 1):
            choice = walk.at_budget(tenths / 10)[0].tolist()
            rows = self.costs.rows(choice)
            bits = [b for row in rows for b in row]
            found.append(
                {
                    "digest": digest_of(bits),
                    "choices": [],
                    "mean_bits": sum(bits) / len(bits),
                    "mac_weighted_bits": self._mac_mean(rows),
                    "trellis_error": None,
                    "predicted_error": self.costs.predicted(choice),
                    "rollout_error": None,
                    "bits": bits,
                }
            )
        return found

    def beam(self) -> Beam:
        from adatsq_pipe.stages.numerics.beam import Beam  # only a search needs it

        return Beam(prices=self.prices, budget=self.settings.budget, width=self.settings.width)
