"""The trellis that is searched: which bits every candidate gives every layer at every step, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from adatsq_pipe.stages import capture, fisher
from adatsq_pipe.stages.base import Context, Settings
from adatsq_pipe.storage.fingerprint import Plain

if TYPE_CHECKING:
    from adatsq_pipe.stages.numerics.beam import Beam, Choices
    from adatsq_pipe.stages.numerics.policy import Policy


class SearchSettings(Settings):
    """[search]"""

    bits: tuple[int, ...] = (3, 4, 8)
    """Activation bit-widths to choose from, rising."""
    budget: float = 4.0
    """Mean activation bits over steps and layers that the policy may have."""
    candidates: tuple[tuple[float, ...], ...] = ((0.25, 0.75, 0.0), (0.0, 1.0, 0.0), (0.35, 0.45, 0.2))
    """Configurations of one step: the share of layers at each bit-width. Fisher rank decides which layers."""
    width: int = Field(default=2, ge=1)
    """Paths kept per level."""
    error: Literal["state", "output"] = "state"
    """Error of a step: of the latents it leads to, or of the denoiser's output."""
    batches: int = Field(default=1, ge=1)
    """Calibration batches on which the trellis is evaluated, from the first."""
    samples: int = Field(default=0, ge=0)
    """Captions in one unit of work; 0 = all of a batch at once, which is quickest while few workers share a level.
    A level has width x candidates x captions / samples units (by default 2 x 3 x 8 / 8): lower it, down to 1, where
    that is less than there are workers, or where the denoiser is so large that one caption fills a GPU. Batches of
    other sizes round differently, so it bears identity."""
    rollout_prompts: int = Field(default=4, ge=1)
    """Captions on which survivors are re-scored, of as many batches as the trellis has, those after it if there are
    any."""

    @model_validator(mode="after")
    def _possible(self) -> SearchSettings:
        if list(self.bits) != sorted(set(self.bits)) or not all(2 <= b <= 8 for b in self.bits):
            raise ValueError(f"bits must rise and lie in 2..8, not {list(self.bits)}")
        for shares in self.candidates:
            if len(shares) != len(self.bits) or abs(sum(shares) - 1) > 1e-6 or min(shares) < 0:
                raise ValueError(
                    f"candidate {list(shares)} must give a share for each of {list(self.bits)}, summing to 1"
                )
        means = [sum(b * s for b, s in zip(self.bits, shares, strict=True)) for shares in self.candidates]
        if self.budget < min(means) - 1e-9:
            raise ValueError(
                f"a budget of {self.budget:g} mean bits cannot be met: the cheapest of the candidates over bits "
                f"{list(self.bits)} has {min(means):g}; raise search.budget or add a cheaper candidate"
            )
        return self


def identity_of(table: Mapping[str, Any]) -> dict[str, Plain]:
    """What of [search] bears identity: all of it, but not what came later and is as if it were not there."""
    neutral = {"batches": 1, "samples": 0}
    return {key: value for key, value in table.items() if key not in neutral or value != neutral[key]}


class Trellis:
    """The trellis of one run: bits of every candidate at every step, over the layers that have activation bits."""

    def __init__(self, context: Context) -> None:
        from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY, assign

        self.settings = context.settings("search", SearchSettings)
        self.survey = capture.survey_of(context)
        rows = self.survey["layers"]
        rounded = [i for i, row in enumerate(rows) if row["kind"] == "tokens"]
        used = {i: set(capture.active(self.survey, rows[i])) for i in rounded}
        self.rounded = [[i for i in rounded if t in used[i]] for t in range(self.survey["steps"])]
        """At every step, the layers that are used and have activation bits."""
        scores_TL = fisher.fisher_scores(context)
        self.bits = [
            [assign(scores[here].tolist(), self.settings.bits, shares) for shares in self.settings.candidates]
            for scores, here in zip(scores_TL, self.rounded, strict=True)
        ]
        self._base = [WEIGHT_ONLY] * len(rows)
        self._macs = [row["macs"] for row in rows]

    @property
    def prices(self) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(sum(row) / len(row) for row in step) for step in self.bits)

    def whole_row(self, step: int, bits: tuple[int, ...]) -> tuple[int, ...]:
        """Bits of all layers at a step: those of the rounded ones, and 16 for those weight-only or not used."""
        row = list(self._base)
        for i, b in zip(self.rounded[step], bits, strict=True):
            row[i] = b
        return tuple(row)

    def policy(self, choices: Choices) -> Policy:
        """The policy of a whole path, over the rounded layers."""
        from adatsq_pipe.stages.numerics.policy import Policy

        return Policy(tuple(self.bits[t][c] for t, c in enumerate(choices)))

    def whole(self, policy: Policy) -> Policy:
        from adatsq_pipe.stages.numerics.policy import Policy

        return Policy(tuple(self.whole_row(t, row) for t, row in enumerate(policy.bits)))

    def mac_weighted(self, policy: Policy) -> float:
        """Mean bits of a path's policy, every layer weighted by its multiply-accumulates."""
        macs = [[self._macs[i] for i in here] for here in self.rounded]
        spent: float = sum(
            b * m for row, of in zip(policy.bits, macs, strict=True) for b, m in zip(row, of, strict=True)
        )
        total: float = sum(map(sum, macs))
        return spent / total

    def beam(self) -> Beam:
        from adatsq_pipe.stages.numerics.beam import Beam

        return Beam(prices=self.prices, budget=self.settings.budget, width=self.settings.width)
