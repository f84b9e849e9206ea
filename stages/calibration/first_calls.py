"""What the survey sees of the first call of every denoiser, and keeps of the run's very first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from torch import nn

from adatsq_pipe.stages.base.survey import CallSurvey
from adatsq_pipe.stages.calibration.input_samples import seed_of
from adatsq_pipe.stages.calibration.unit_keys import BlockKey
from adatsq_pipe.stages.denoiser.call import CallPart
from adatsq_pipe.stages.denoiser.hooks import RowSampler, ShapeRecorder, shown
from adatsq_pipe.stages.denoiser.outputs import Output, is_finite


@dataclass(frozen=True, kw_only=True)
class FirstCall:
    """The very first call of a run: what came out, and the samples of the inputs."""

    output: Output
    sampler: RowSampler


class FirstCalls:
    """Looks on while a run is rehearsed, as `around` makes its forward passes.

    The first call of a rehearsal is also that of the recorded run: a worker that records the run next need not make it
    again. `layers` are those of each denoiser; `rows` of an input are sampled.
    """

    def __init__(self, layers: Mapping[str, Mapping[str, nn.Linear]], rows: int) -> None:
        self._layers, self._rows = layers, rows
        self._shapes: dict[str, ShapeRecorder] = {}
        """Of the inputs of every denoiser's first call (of its first part, if it does not fit whole)."""
        self._repeated: dict[str, list[str]] = {}
        self._share: dict[str, Fraction] = {}
        """Of the call's samples in that part."""
        self.kept: FirstCall | None = None
        """None if the call did not fit whole, or the output is not finite."""

    def around(self, part: CallPart, forward: Callable[[], Output]) -> Output:
        """Make the forward pass, and look on if it is a denoiser's first. If layers run more than once in it, it is
        made once more without a look at these."""
        name, layers = part.call.part, self._layers[part.call.part]
        if name in self._shapes:
            return forward()
        is_first, self._share[name], self._repeated[name] = not self._shapes, part.share, list[str]()
        while True:
            self._shapes[name] = ShapeRecorder(layers)
            sampler = RowSampler(layers if is_first else {}, self._rows, seed_of(BlockKey(0, 0), 0))
            try:
                output = forward()
            finally:
                self._shapes[name].close()
                sampler.close()
            if self._repeated[name] or not self._shapes[name].repeated:
                break
            self._repeated[name] = sorted(self._shapes[name].repeated)
            layers = {layer: x for layer, x in layers.items() if layer not in self._repeated[name]}
        if is_first and part.share == 1 and is_finite(output):
            self.kept = FirstCall(output=output, sampler=sampler)
        return output

    def survey(self, part: str, samples: int) -> CallSurvey:
        """What the first call of a denoiser shows; a run has so many samples."""
        return shown(self._shapes[part], self._layers[part], self._repeated[part], samples * self._share[part])
