"""Do policies from two disjoint halves of the calibration captions agree? `python -m tests.bench.halves RUN_DIR`.

The captions of even batches make one half, those of odd batches the other. Each half's effects alone give an allocation
of activation bits at a budget. Its cost is how much more error of the final latents it leads to on the other half's
captions than the other half's own allocation does: in dB, predicted by that half's effects, and measured by rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from adatsq_pipe.stages.allocation.lagrangian import place_costs
from adatsq_pipe.stages.allocation.trellis import SearchSettings, widths_of
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.calibration.effects import WIDTHS, Effects, FisherSettings, effects_of
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.denoiser.conditions import calibration_shards
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.numerics.lagrange import Walk
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY, Policy
from tests.bench.rollout import Rollouts, context_of, rounded_mask


@dataclass(frozen=True, kw_only=True)
class Half:
    """The captions of some batches, and the places where tokens are rounded."""

    batches: tuple[int, ...]
    mask_TL: npt.NDArray[np.bool_]
    alike_CTLW: npt.NDArray[np.float64]
    """Effects in units of each caption's own, [captions x draws, steps, layers, stored widths]."""

    def allocation(self, widths: Sequence[int], budget: float) -> list[int]:
        """Bits of every place at a budget of mean bits."""
        cost_NW = place_costs(self.alike_CTLW, *np.nonzero(self.mask_TL))[:, [WIDTHS.index(bits) for bits in widths]]
        return [widths[k] for k in Walk.of(cost_NW, widths).at_budget(budget)[0]]

    def predicted(self, bits_N: Sequence[int]) -> float:
        """The error of this half's captions, the geometric mean, up to a factor of each caption."""
        places = np.zeros(self.mask_TL.shape, dtype=np.int64)
        places[self.mask_TL] = [WIDTHS.index(bits) for bits in bits_N]
        own_CTL = np.take_along_axis(self.alike_CTLW, places[None, :, :, None], 3)[..., 0] * self.mask_TL
        return float(np.exp(np.log((own_CTL.sum(1) ** 2).sum(1)).mean()))


def halves_of(context: Context, mask_TL: npt.NDArray[np.bool_]) -> tuple[Half, Half]:
    """Even and odd batches. Raises ClickException if there is one batch only."""
    sizes = [len(batch.prompts) for batch in calibration_shards(context)]
    if len(sizes) < 2:
        raise click.ClickException("the captions are one batch; run with a smaller data.batch")
    draws, effects = context.settings[FisherSettings].draws, effects_of(context)
    batch_of_C = np.repeat(np.arange(len(sizes)), [size * draws for size in sizes])

    def half(parity: int) -> Half:
        own = batch_of_C % 2 == parity
        parts = Effects(**{name: getattr(effects, name)[own] for name in ("activations", "weights", "latents")})
        batches = tuple(range(parity, len(sizes), 2))
        return Half(batches=batches, mask_TL=mask_TL, alike_CTLW=parts.alike().activations)

    return half(0), half(1)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the policy of one half costs on the other at a budget, in dB over the other's own policy."""

    budget: float
    same: float
    """Share of places with the same bits in both."""
    predicted: float
    measured: float


def policy_of(bits_N: Sequence[int], mask_TL: npt.NDArray[np.bool_]) -> Policy:
    """The policy with these bits where tokens are rounded."""
    bits = np.full(mask_TL.shape, WEIGHT_ONLY)
    bits[mask_TL] = bits_N
    return Policy(tuple(tuple(row) for row in bits.tolist()))


def costs(context: Context, budgets: Sequence[float]) -> list[Cost]:
    """Both directions at every budget."""
    mask, rollouts, found = rounded_mask(survey_of(context)), Rollouts(context), list[Cost]()
    halves = halves_of(context, mask)
    for budget in budgets:
        settings = context.settings[SearchSettings].model_copy(update={"budget": budget})
        widths = widths_of(settings, context.settings[Recipe].allocation)
        both = [half.allocation(widths, budget) for half in halves]
        for half, own, foreign in zip(halves, both, reversed(both), strict=True):
            error = {
                name: rollouts.error(policy_of(bits, mask), half.batches)
                for name, bits in (("own", own), ("foreign", foreign))
            }
            cost = Cost(
                budget=budget,
                same=float(np.mean(np.array(own) == np.array(foreign))),
                predicted=10 * math.log10(half.predicted(foreign) / half.predicted(own)),
                measured=10 * math.log10(error["foreign"] / error["own"]),
            )
            found.append(cost)
    return found


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--budget", "budgets", multiple=True, type=float, help="Mean bits; repeatable [default: the run's].")
def main(run_dir: Path, budgets: tuple[float, ...]) -> None:
    """Print the table."""
    context = context_of(run_dir)
    click.echo("| budget | places of the same bits | predicted cost, dB | measured cost, dB |\n|---|---|---|---|")
    for cost in costs(context, budgets or [context.settings[SearchSettings].budget]):
        click.echo(f"| {cost.budget:.1f} | {cost.same:.0%} | {cost.predicted:+.2f} | {cost.measured:+.2f} |")


if __name__ == "__main__":
    main()
