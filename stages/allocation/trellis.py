"""The trellis that is searched: which bits every candidate gives every layer at every step, and what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.settings import Settings
from adatsq_pipe.stages.calibration.scores import fisher_scores
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY, Policy, bits_by_fisher
from adatsq_pipe.storage.fingerprint import Plain

if TYPE_CHECKING:
    from adatsq_pipe.stages.numerics.beam import Beam, Choices


class SearchSettings(Settings):
    """[search]"""

    table: ClassVar[str] = "search"

    bits: tuple[int, ...] = (3, 4, 8)
    """Activation bit-widths to choose from, rising."""
    budget: float = 4.0
    """Mean activation bits over steps and layers that the policy may have."""
    candidates: tuple[tuple[float, float], ...] = ((0.0, 0.0), (0.25, 0.125))
    """Candidate policies as (within, across): exponents on the Fisher score of a layer within its step, and of the step
    among all. 0 ignores the score, 1 allocates in proportion to the loss that it predicts."""
    width: int = Field(default=2, ge=1)
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
        if self.budget < self.bits[0] - 1e-9:
            raise ValueError(
                f"a budget of {self.budget:g} mean bits cannot be met: the fewest of search.bits {list(self.bits)} is "
                f"{self.bits[0]}; raise search.budget or add a smaller width"
            )
        for sharpness in self.candidates:
            if min(sharpness) < 0:
                raise ValueError(f"candidate {list(sharpness)} must be two numbers of at least 0: layers, steps")
        return self

    def identity(self) -> dict[str, Plain]:
        """All settings, less those added later while they have the value that makes no difference."""
        neutral = {"batches": 1, "samples": 0}
        return {key: value for key, value in super().identity().items() if key not in neutral or value != neutral[key]}


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
        scores_TL = fisher_scores(context)
        scores = [row[here].tolist() for row, here in zip(scores_TL, self.rounded, strict=True)]
        self.policies = [
            bits_by_fisher(scores, self.settings.bits, self.settings.budget, sharpness)
            for sharpness in self.settings.candidates
        ]
        """What every candidate would be over all steps, [candidate][step][layer]."""
        self._base = [WEIGHT_ONLY] * len(rows)
        self._macs = [row.macs or 0 for row in rows]

    @property
    def prices(self) -> tuple[tuple[float, ...], ...]:
        """Mean bits that every candidate of every step adds to a path, times the number of steps."""
        per_layer = len(self.rounded) / sum(map(len, self.rounded))
        return tuple(tuple(sum(row[t]) * per_layer for row in self.policies) for t in range(len(self.rounded)))

    @property
    def even(self) -> list[Choices]:
        """The paths that have the same candidate at every step; each is a policy of the budget."""
        return [(c,) * len(self.rounded) for c in range(len(self.policies))]

    def bits_of(self, step: int, candidate: int) -> tuple[int, ...]:
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
        macs = [[self._macs[i] for i in here] for here in self.rounded]
        spent: float = sum(
            b * m
            for row, weights in zip(self.rounded_bits(choices), macs, strict=True)
            for b, m in zip(row, weights, strict=True)
        )
        total: float = sum(map(sum, macs))
        return spent / total

    def beam(self) -> Beam:
        from adatsq_pipe.stages.numerics.beam import Beam

        return Beam(prices=self.prices, budget=self.settings.budget, width=self.settings.width)
