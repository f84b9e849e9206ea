"""The exact allocation of activation bits over steps and layers, at every budget, from what rounding costs there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.survey import Survey
from adatsq_pipe.stages.calibration.effects import WIDTHS, effects_of, is_end_to_end, squared
from adatsq_pipe.stages.calibration.scores import fisher_scores
from adatsq_pipe.stages.numerics.policy import rounding_error

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from adatsq_pipe.stages.numerics.lagrange import Walk

    Array = npt.NDArray[np.float64]

SHARPNESS = (0.25, 0.125)
"""Exponents on per-step Fisher scores, of a layer within its step and of the step among all, where the pipeline's loop
cannot be differentiated (numerics/policy.bits_by_fisher)."""


class Costs:
    """What rounding costs at every (step, rounded layer) and width: `cost_NW`, in units of each caption's own error, is
    what the allocation makes small, and `predicted` is the relative error of the final latents."""

    def __init__(self, context: Context, survey: Survey, rounded: list[list[int]], widths: tuple[int, ...]) -> None:
        import numpy as np  # status reads this module and needs no numpy

        self.widths, self.rounded = widths, rounded
        self.end_to_end = is_end_to_end(context)
        places = [(t, i) for t, here in enumerate(rounded) for i in here]
        self._steps = np.array([t for t, _ in places])
        layers = np.array([i for _, i in places])
        if self.end_to_end:
            effects = effects_of(context)
            known = [WIDTHS.index(bits) for bits in widths]
            self.cost_NW = place_costs(effects.alike().activations, self._steps, layers)[:, known]
            own = effects.activations[:, self._steps, layers][:, :, known]
            self._effects_CNW = own / np.sqrt(effects.latents)[:, None, None]
            self._by_layer = np.argsort(layers, kind="stable")
            self._first_of_layer = np.unique(layers[self._by_layer], return_index=True)[1]
        else:
            self.cost_NW = _by_fisher(fisher_scores(context), rounded)[:, None] * [rounding_error(b) for b in widths]
        macs = np.array([float(survey.layers[i].macs or 0) for i in layers])
        self.macs_N = macs if macs.any() else np.ones(len(layers))

    def walk(self, price: str) -> Walk:
        """All allocations; a bit is priced alike everywhere ("bits"), or by multiply-accumulates ("macs")."""
        from adatsq_pipe.stages.numerics.lagrange import Walk  # imports numpy

        return Walk.of(self.cost_NW, self.widths, self.macs_N if price == "macs" else None)

    def rows(self, choice_N: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Bits of the rounded layers of every step."""
        bits = iter(self.widths[k] for k in choice_N)
        return tuple(tuple(next(bits) for _ in here) for here in self.rounded)

    def predicted(self, choice_N: Sequence[int]) -> float | None:
        """The expected relative error of the final latents that a choice adds. None of per-step scores.

        A layer's effects add up over steps with their signs, those of different layers independently: the geometric
        mean over captions (and draws) of the sum over layers of squared sums over steps.
        """
        import numpy as np  # status reads this module and needs no numpy

        if not self.end_to_end:
            return None
        own_CN = self._effects_CNW[:, np.arange(len(choice_N)), choice_N][:, self._by_layer]
        errors_C = (np.add.reduceat(own_CN, self._first_of_layer, axis=1) ** 2).sum(1)
        return float(np.exp(np.log(np.maximum(errors_C, 1e-300)).mean()))


def place_costs(alike_CTLW: Array, steps_N: npt.NDArray[np.int64], layers_N: npt.NDArray[np.int64]) -> Array:
    """What rounding costs at places (step, layer) to every stored width, [places, widths], from effects in units of
    each caption's own."""
    import numpy as np  # status reads this module and needs no numpy

    cost_NW = pooled(squared(alike_CTLW)[steps_N, layers_N], layers_N)
    result: Array = cost_NW * coherence(alike_CTLW[:, :, np.unique(layers_N)])
    return result


def pooled(cost_NW: Array, layers_N: npt.NDArray[np.int64]) -> Array:
    """Costs [places, widths] that rest on all widths: the geometric mean of each cost and of what a product of a factor
    of its place and one of its layer and width says.

    A cost is measured on a few captions. How much a place matters is the same for all widths, whose rounding errors
    differ, so that they are as many measurements of it.
    """
    import numpy as np  # status reads this module and needs no numpy

    if not cost_NW.any():
        return cost_NW
    logs_NW = np.log(np.maximum(cost_NW, 1e-18 * cost_NW.max()))
    place_N1 = logs_NW.mean(1, keepdims=True)
    _, layer_N, places_L = np.unique(layers_N, return_inverse=True, return_counts=True)
    width_LW = np.zeros((len(places_L), logs_NW.shape[1]))
    np.add.at(width_LW, layer_N, logs_NW - place_N1)
    product_NW = place_N1 + (width_LW / places_L[:, None])[layer_N]
    result: Array = np.exp((logs_NW + product_NW) / 2)
    return result


def coherence(effects_CTLW: Array) -> Array:
    """How much larger effects are whose layer rounds to a width at all steps than independent ones would be, [widths]:
    the squared sum over steps over the sum of squares, the geometric mean over layers.

    Rounding to few bits errs in the same direction at every step (zero is where most values go), and such effects add
    up; at many bits the ratio is near 1.
    """
    import numpy as np  # status reads this module and needs no numpy

    apart_LW = squared(effects_CTLW).sum(0)
    seen = (apart_LW > 0).all(1)
    ratios_LW = squared(effects_CTLW.sum(1))[seen] / apart_LW[seen]
    found: Array = np.exp(np.log(np.maximum(ratios_LW, 1e-3)).mean(0)) if seen.any() else np.ones(apart_LW.shape[1])
    return found


def _by_fisher(scores_TL: Array, rounded: list[list[int]]) -> Array:
    """Per-step scores of all (step, rounded layer), made comparable over steps."""
    import numpy as np  # status reads this module and needs no numpy

    within, across = SHARPNESS
    found = []
    for row, here in zip(scores_TL, rounded, strict=True):
        mean = row[here].mean() or 1.0
        found.append(mean**across * (row[here] / mean) ** within)
    return np.concatenate(found)
