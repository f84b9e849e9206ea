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
    """What rounding costs at every (step, rounded layer) and width: `cost_NW` is divided among them, in units of each
    caption's own error, and `predicted` is the relative error of the final latents."""

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
            self.cost_NW = squared(effects.alike().activations)[self._steps, layers][:, known]
            own = effects.activations[:, self._steps, layers][:, :, known]
            self._errors_CNW = own**2 / effects.latents[:, None, None]
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
        """The expected relative error of the final latents that a choice adds: the geometric mean over captions (and
        draws) of the sum over places, as roundings are nearly independent. None of per-step scores."""
        import numpy as np  # status reads this module and needs no numpy

        if not self.end_to_end:
            return None
        errors_C = self._errors_CNW[:, np.arange(len(choice_N)), choice_N].sum(1)
        return float(np.exp(np.log(np.maximum(errors_C, 1e-300)).mean()))


def _by_fisher(scores_TL: Array, rounded: list[list[int]]) -> Array:
    """Per-step scores of all (step, rounded layer), made comparable over steps."""
    import numpy as np  # status reads this module and needs no numpy

    within, across = SHARPNESS
    found = []
    for row, here in zip(scores_TL, rounded, strict=True):
        mean = row[here].mean() or 1.0
        found.append(mean**across * (row[here] / mean) ** within)
    return np.concatenate(found)
