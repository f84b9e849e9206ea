"""Samples of the layers' inputs at the calls of one block of steps, taken while the calls are made."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.survey import Survey
from adatsq_pipe.stages.calibration.unit_keys import BlockKey
from adatsq_pipe.stages.denoiser.call import Call, CallPart
from adatsq_pipe.stages.denoiser.hooks import RowSampler, equalize
from adatsq_pipe.stages.denoiser.outputs import Output
from adatsq_pipe.storage import tensors


@dataclass(kw_only=True)
class InputSamples:
    """Rows and peaks of every distinct input at the calls of a block of steps, on one batch of captions.

    `around` samples the forward passes of a call, in the order of the calls. Of a call in parts each gives its share of
    the rows.
    """

    at: BlockKey
    steps: range
    survey: Survey
    layers: Mapping[str, nn.Linear]
    """Those of the survey."""
    rows: int
    """Kept of a step and input at most; a step's calls share them."""
    seconds: float = 0.0
    """What sampling took besides the forward passes."""
    _rows: dict[str, list[Tensor]] = field(default_factory=dict)
    _peaks: dict[str, list[Tensor]] = field(default_factory=dict)
    _parts: list[dict[str, tuple[Tensor, Tensor]]] = field(default_factory=list)
    """Rows and peaks of the present call's parts so far."""
    _seen: Fraction = Fraction(0)
    """The share of the present call's samples that is in them."""

    @property
    def calls_per_step(self) -> int:
        return self.survey.calls_at(self.steps.start)

    @property
    def _count(self) -> int:
        """Rows kept of a call and input at most."""
        return max(1, self.rows // self.calls_per_step)

    def around(self, part: CallPart, forward: Callable[[], Output]) -> Output:
        """Make the forward pass and sample its inputs. Raises StageError for an input that is not finite."""
        seed = seed_of(self.at, part.call.step)
        count = math.ceil(self._count * part.share)
        sampler = RowSampler(self.layers, count, (*seed, part.place) if part.place else seed)
        try:
            output = forward()
        finally:
            sampler.close()
        self.seconds += sampler.seconds
        self.take(part.call, sampler, part.share)
        return output

    def take(self, call: Call, sampler: RowSampler, share: Fraction = Fraction(1)) -> None:
        """Add what a sampler saw of the `share` of a call's samples."""
        start = time.perf_counter()
        found = {owner.name: sampler.of(owner.name, self.layers[owner.name]) for owner in self.survey.owners()}
        if not torch.cat([peak.double() for _, peak in found.values()]).isfinite().all():
            raise not_finite(next(n for n, (_, peak) in found.items() if not peak.isfinite().all()), call)
        self._parts.append(found)
        self._seen += share
        if self._seen == 1:
            self._end()
        self.seconds += time.perf_counter() - start

    def _end(self) -> None:
        """Keep what was sampled of the parts of a call."""
        for name, (rows, peak) in self._parts[0].items():
            if len(self._parts) > 1:
                rows = torch.cat([part[name][0] for part in self._parts])
                peak = torch.stack([part[name][1] for part in self._parts]).amax(0)
            self._rows.setdefault(name, []).append(rows[: self._count])
            self._peaks.setdefault(name, []).append(peak)
        self._parts, self._seen = [], Fraction(0)

    @property
    def is_complete(self) -> bool:
        """Whether as many calls were sampled as the survey saw in these steps."""
        calls = sum(map(self.survey.calls_at, self.steps))
        return all(len(rows) == calls for rows in self._rows.values()) and bool(self._rows)

    def write(self, folder: Path) -> None:
        """Write `rows:` [calls, rows, in] and `absmax:` [calls, in] of every layer that owns an input."""
        found = {f"rows:{name}": torch.stack(equalize(rows)) for name, rows in self._rows.items()}
        found.update({f"absmax:{name}": torch.stack(peaks) for name, peaks in self._peaks.items()})
        marks = {"start": self.steps.start, "stop": self.steps.stop, "calls_per_step": self.calls_per_step}
        tensors.write_stacked(folder, found, marks)


def seed_of(at: BlockKey, step: int) -> tuple[int, ...]:
    """What decides which rows are sampled at a call of a step."""
    return (at.block, at.batch, step)


def not_finite(layer: str, call: Call) -> StageError:
    """The error for a layer's input at a call."""
    return StageError(
        f"NaN or infinity in the input of layer {layer} at step {call.step} (timestep {call.timestep:g}); "
        "check the model, or set compute.dtype to float32"
    )
