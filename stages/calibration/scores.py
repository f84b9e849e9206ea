"""Fisher scores, read back without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.calibration.effects import effects_of, is_end_to_end, squared
from adatsq_pipe.stages.calibration.survey import activation_units, batch_count, survey_of
from adatsq_pipe.stages.calibration.unit_keys import read_block_key

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def fisher_scores(context: Context) -> npt.NDArray[np.float64]:
    """I[t, l], [steps, layers in survey order]: the mean over batches of captions, in their order.

    Of sweeps it is the expected square of the effect that rounding the layer's weight has at the step. Read without
    torch: the search's coordinator has no other use for it.
    """
    import numpy as np  # status reads this module and needs no numpy

    from adatsq_pipe.storage import arrays  # imports zarr

    if is_end_to_end(context):
        return squared(effects_of(context).weights)

    survey = survey_of(context)
    total = np.zeros((survey.steps, len(survey.layers)))
    for key in score_units(context):
        folder = context.read("fisher", key)[1]
        marks = arrays.attributes(folder)
        total[marks["start"] : marks["stop"]] += arrays.read(folder, "scores")
    mean: npt.NDArray[np.float64] = total / batch_count(context)
    return mean


def curvature_of(context: Context, layer: str) -> npt.NDArray[np.float64]:
    """Mean squared gradient of a layer's output channels at every step, [steps, out], summed over batches in order.

    Only recipes with calibrated scales have it written.
    """
    import numpy as np  # status reads this module and needs no numpy

    from adatsq_pipe.storage import arrays  # imports zarr

    parts: dict[int, npt.NDArray[np.float64]] = {}
    for key in score_units(context):
        folder = context.read("fisher", key, tensors=["scores", f"curvature:{layer}"])[1]
        found = arrays.read(folder, f"curvature:{layer}").astype(np.float64)
        start = int(arrays.attributes(folder)["start"])
        parts[start] = parts[start] + found if start in parts else found
    return np.concatenate([parts[start] for start in sorted(parts)])


def score_units(context: Context) -> list[str]:
    """By block, then by batch; none before the survey."""
    by_batch = activation_units(context).values()
    return [read_block_key(unit).scores for of_block in zip(*by_batch, strict=True) for unit in of_block]
