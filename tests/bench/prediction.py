"""How well the end-to-end effects predict: `python -m tests.bench.prediction RUN_DIR`.

Random policies (widths for every step and layer, of random means from 2.5 to 8 bits) on the solved weights of a
finished run. Predicted is the measured error of the weights alone and, from the effects of rounding activations, the
sum over layers of their squared sums over steps. Measured is the relative squared error of the final latents that the
policy's rollout leads to, the geometric mean over the captions of one calibration batch. Prints a table and writes the
plot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from adatsq_pipe.pipeline.plots.figures import pyplot, save
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.calibration.effects import WIDTHS, effects_of
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY, Policy
from tests.bench.rollout import Rollouts, context_of, rounded_mask

FEWEST, MOST = 2.5, 8.0
"""Mean bits of the random policies."""
FACTOR = 3.0
"""A prediction is right within this factor."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Relative squared errors of the final latents under one policy."""

    mean_bits: float
    activations: float
    """Predicted of rounding activations, as the front has it."""
    weights: float
    """Measured with the weights alone rounded."""
    measured: float

    @property
    def predicted(self) -> float:
        return self.activations + self.weights

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted / self.measured


def is_near(ratio: float) -> bool:
    """Whether a prediction is right within FACTOR."""
    return 1 / FACTOR <= ratio <= FACTOR


def random_policy(random: np.random.Generator, mask_TL: npt.NDArray[np.bool_]) -> Policy:
    """A policy whose widths are drawn independently, with a mean that is drawn evenly from FEWEST to MOST."""
    chances = chances_of(random.uniform(FEWEST, MOST))
    drawn = random.choice(WIDTHS, size=mask_TL.shape, p=chances)
    bits = np.where(mask_TL, drawn, WEIGHT_ONLY)
    return Policy(tuple(tuple(row) for row in bits.tolist()))


def chances_of(mean: float) -> npt.NDArray[np.float64]:
    """The distribution over WIDTHS with this mean that is widest: in proportion to exp(tilt x bits)."""
    widths, low, high = np.array(WIDTHS, float), -50.0, 50.0
    for _ in range(80):
        tilt = (low + high) / 2
        weights = np.exp(tilt * widths - (tilt * widths).max())
        weights /= weights.sum()
        low, high = (tilt, high) if weights @ widths < mean else (low, tilt)
    return weights


def predictions(context: Context, policies: Sequence[Policy], batch: int = 0) -> list[Prediction]:
    """Every policy, predicted from all sweeps and rolled out on a calibration batch."""
    mask, effects, rollouts = rounded_mask(survey_of(context)), effects_of(context), Rollouts(context)
    own_CTLW = effects.activations / np.sqrt(effects.latents)[:, None, None, None]
    weights, found = rollouts.error(rollouts.weights_only, [batch]), list[Prediction]()
    for policy in policies:
        bits = np.array(policy.bits)[mask]
        place = (np.arange(len(bits)), np.searchsorted(WIDTHS, bits))
        own_CTL = np.zeros(own_CTLW.shape[:3])
        own_CTL[:, mask] = own_CTLW[:, mask][:, *place]
        own_C = (own_CTL.sum(1) ** 2).sum(1)
        predicted = float(np.exp(np.log(own_C).mean()))
        measured = rollouts.error(policy, [batch])
        found.append(
            Prediction(mean_bits=float(bits.mean()), activations=predicted, weights=weights, measured=measured)
        )
    return found


def plot(found: Sequence[Prediction], path: Path) -> None:
    """Measured against predicted errors, with the line of equals and the lines of FACTOR."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
    predicted, measured = [p.predicted for p in found], [p.measured for p in found]
    ends = np.array([min(*predicted, *measured) / 1.5, max(*predicted, *measured) * 1.5])
    axis.plot(ends, ends, color="black", linewidth=1, label="equal")
    for factor in (1 / FACTOR, FACTOR):
        axis.plot(ends, ends * factor, color="0.6", linewidth=1, linestyle=":")
    axis.plot([], [], color="0.6", linewidth=1, linestyle=":", label=f"within a factor of {FACTOR:g}")
    points = axis.scatter(predicted, measured, c=[p.mean_bits for p in found], cmap="viridis", zorder=3)
    axis.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    axis.set_xlabel("predicted relative error of the final latents")
    axis.set_ylabel("measured")
    axis.legend(fontsize=8, loc="upper left")
    figure.colorbar(points, label="mean activation bits")
    save(figure, path)


def table(found: Sequence[Prediction]) -> list[str]:
    """A line for each policy, then what there is to say of all."""
    lines = [
        "| mean bits | predicted | of it weights | measured | ratio |",
        "|---|---|---|---|---|",
    ]
    for p in sorted(found, key=lambda p: p.mean_bits):
        cells = (f"{p.mean_bits:.2f}", *(f"{v:.3g}" for v in (p.predicted, p.weights, p.measured)))
        lines.append(f"| {' | '.join(cells)} | {p.ratio:.2f} |")
    ratios = [p.ratio for p in found]
    quantiles = zip(("least", "10 %", "50 %", "90 %", "most"), np.quantile(ratios, (0, 0.1, 0.5, 0.9, 1)), strict=True)
    near = f"within a factor of {FACTOR:g}: {sum(map(is_near, ratios))} of {len(found)}"
    return [*lines, "", f"ratio: {', '.join(f'{q} {v:.2f}' for q, v in quantiles)}; {near}"]


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--policies", default=40, show_default=True, type=click.IntRange(min=20))
@click.option("--seed", default=0, show_default=True)
@click.option("--batch", default=0, show_default=True, help="Calibration batch whose captions are rolled out.")
@click.option("--out", type=click.Path(path_type=Path), help="Plot [default: RUN_DIR/prediction.png].")
def main(run_dir: Path, policies: int, seed: int, batch: int, out: Path | None) -> None:
    """Print the table and write the plot."""
    context, random = context_of(run_dir), np.random.default_rng(seed)
    mask = rounded_mask(survey_of(context))
    found = predictions(context, [random_policy(random, mask) for _ in range(policies)], batch)
    click.echo("\n".join(table(found)))
    plot(found, out or run_dir / "prediction.png")


if __name__ == "__main__":
    main()
