"""The inputs of a run's blocks of steps, sampled while the run is recorded: a block is written when its steps are over.

So one block's samples are in memory at a time, and a worker that is killed loses those of one block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.micro_batch import MicroBatch
from adatsq_pipe.stages.base.units import unit_of
from adatsq_pipe.stages.calibration.input_samples import InputSamples, not_finite
from adatsq_pipe.stages.denoiser.call import Call, CallPart
from adatsq_pipe.stages.denoiser.hooks import RowSampler
from adatsq_pipe.stages.denoiser.outputs import Output, is_finite


class RecordedBlocks:
    """Passes a run's calls on to the samples of their block, and writes these. `samples` are those of the units that
    are wanted; `micro` is the worker's."""

    def __init__(self, context: Context, samples: Mapping[str, InputSamples], micro: MicroBatch) -> None:
        self._context, self._left, self._micro = context, dict(samples), micro
        self._unit = ""
        """The present call's, or the last that was wanted."""
        self._present: InputSamples | None = None
        self._spent = 0.0

    @property
    def seconds(self) -> float:
        """What sampling and writing took so far, besides the forward passes."""
        return self._spent + sum(samples.seconds for samples in self._left.values())

    def see(self, call: Call) -> None:
        """The next call of the run, before it is made. Writes the block before it, if that is over."""
        if self._present is not None and call.step not in self._present.steps:
            self.close()
        if self._present is None:
            found = ((unit, samples) for unit, samples in self._left.items() if call.step in samples.steps)
            self._unit, self._present = next(found, ("", None))

    def take(self, call: Call, sampler: RowSampler) -> None:
        """Add what was sampled of the present call before."""
        if self._present is not None:
            self._present.take(call, sampler)

    def around(self, part: CallPart, forward: Callable[[], Output]) -> Output:
        """Make a forward pass of the present call. Raises StageError for inputs or an output that are not finite."""
        output = forward() if self._present is None else self._present.around(part, forward)
        if not is_finite(output):
            raise not_finite("after the last block", part.call)
        return output

    def close(self) -> None:
        """Write the present block, unless the run made other calls in it than the survey saw."""
        samples, self._present = self._present, None
        if samples is None:
            return
        start, sampled = time.perf_counter(), samples.seconds
        if samples.is_complete:
            with unit_of(self._context, "capture", self._unit) as unit:
                unit.micro_batch, unit.elsewhere = self._micro.reduction(), sampled
                samples.write(unit.folder)
        del self._left[self._unit]
        self._spent += sampled + time.perf_counter() - start
