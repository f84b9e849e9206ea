"""What the survey sees of the first call of every denoiser, and keeps of the run's very first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
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
    again. `layers` are those of each denoiser, and `repeated` those of them that are known to run more than once in a
    call; `rows` of an input are sampled.
    """

    def __init__(
        self,
        layers: Mapping[str, Mapping[str, nn.Linear]],
        rows: int,
        repeated: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        self._layers, self._rows = layers, rows
        self._shapes: dict[str, ShapeRecorder] = {}
        """Of the inputs of every denoiser's first call (of its first part, if it does not fit whole)."""
        self._repeated = {part: sorted((repeated or {}).get(part, ())) for part in layers}
        self._share: dict[str, Fraction] = {}
        """Of the call's samples in that part."""
        self.kept: FirstCall | None = None
        """None if the call did not fit whole, or the output is not finite."""

    def around(self, part: CallPart, forward: Callable[[], Output]) -> Output:
        """Make the forward pass, and look on if it is a denoiser's first. If layers run more than once in it that are
        not known to, it is made once more without a look at these."""
        name, layers = part.call.part, self._layers[part.call.part]
        if name in self._shapes:
            return forward()
        is_first, self._share[name] = not self._shapes, part.share
        for last in (False, True):
            once = {layer: x for layer, x in layers.items() if layer not in self._repeated[name]}
            self._shapes[name] = ShapeRecorder(once)
            others = ShapeRecorder({layer: layers[layer] for layer in self._repeated[name]})
            sampler = RowSampler(once if is_first else {}, self._rows, seed_of(BlockKey(0, 0), 0))
            try:
                output = forward()
            finally:
                for recorder in (self._shapes[name], others, sampler):
                    recorder.close()
            found = sorted(self._shapes[name].repeated | others.repeated)
            if last or found == self._repeated[name]:
                break
            self._repeated[name] = found
        if is_first and part.share == 1 and is_finite(output):
            self.kept = FirstCall(output=output, sampler=sampler)
        return output

    def survey(self, part: str, samples: int) -> CallSurvey:
        """What the first call of a denoiser shows; a run has so many samples."""
        return shown(self._shapes[part], self._layers[part], self._repeated[part], samples * self._share[part])
