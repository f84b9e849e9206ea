"""Forward hooks on a denoiser's linear layers: record their inputs during one call, and find layers that share one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from adatsq_pipe.stages.base.survey import CallSurvey, LayerInfo

GUIDED = 4
"""The most guided variants of a sample in one call: with and without the prompt, perturbed attention."""


class InputRecorder:
    """Records the inputs of linear layers during one call.

    `source` maps a layer to the layer whose hook stored the same input tensor; `repeated` holds layers that ran more
    than once, which have no single input.
    """

    RECENT = 8
    """How many distinct inputs are compared with the next one."""

    def __init__(self, layers: Mapping[str, nn.Linear]) -> None:
        self.source: dict[str, str] = {}
        self.inputs: dict[str, Tensor] = {}
        self.repeated: set[str] = set()
        self._recent: list[tuple[Tensor, str]] = []
        self._handles = [layer.register_forward_pre_hook(self._hook(name)) for name, layer in layers.items()]

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if name in self.source:
                self.repeated.add(name)
                return
            for tensor, owner in self._recent:
                if tensor is args[0]:
                    self.source[name] = owner
                    return
            self.source[name] = name
            self._recent = [*self._recent[-self.RECENT + 1 :], (args[0], name)]
            self.take(name, args[0])

        return hook

    def take(self, name: str, x: Tensor) -> None:
        """Store the input `x` [..., in_features] of layer `name`; subclasses store less."""
        self.inputs[name] = x

    def close(self) -> None:
        """Remove the hooks, and let go of the inputs that were compared."""
        for handle in self._handles:
            handle.remove()
        self._recent = []


class ShapeRecorder(InputRecorder):
    """Stores the shapes of inputs, not their values."""

    def take(self, name: str, x: Tensor) -> None:
        self.inputs[name] = x.to("meta")


def listen(forward: Callable[[], object], recorder: InputRecorder) -> InputRecorder:
    """Run one forward pass, then remove the hooks of `recorder`, which is returned."""
    try:
        forward()
    finally:
        recorder.close()
    return recorder


def survey(forward: Callable[[], object], layers: Mapping[str, nn.Linear], samples: Fraction | int) -> CallSurvey:
    """What one forward pass of `samples` samples shows (with guidance in several calls, a fraction of one).

    Layers that ran more than once, or never, are skipped and named.
    """
    recorder = listen(forward, ShapeRecorder(layers))
    repeated = sorted(recorder.repeated)
    if repeated:
        recorder = listen(forward, ShapeRecorder({n: x for n, x in layers.items() if n not in repeated}))
    return shown(recorder, layers, repeated, samples)


def shown(
    recorder: InputRecorder, layers: Mapping[str, nn.Linear], repeated: Sequence[str], samples: Fraction | int
) -> CallSurvey:
    """The survey of a call, from the recorder of all `layers` but those that ran more than once in it."""
    rows = []
    for name, source in recorder.source.items():
        layer, x = layers[name], recorder.inputs[source]
        tokens = x.numel() // x.shape[-1]
        conditioning = x.dim() <= 2 and tokens <= GUIDED * samples
        rows.append(
            LayerInfo(
                name=name,
                in_features=layer.in_features,
                out_features=layer.out_features,
                role="conditioning" if conditioning else "tokens",
                input_of=source,
                macs=tokens * layer.in_features * layer.out_features // samples,
            )
        )
    unused = sorted(set(layers) - set(recorder.source) - set(repeated))
    return CallSurvey(layers=tuple(rows), unused=tuple(unused), repeated=tuple(repeated))


class RowSampler(InputRecorder):
    """Keeps a seeded subsample of rows, and the absolute maximum per channel, of every distinct input.

    `count` is the most rows per input; `seed` goes to numpy's generator.
    """

    def __init__(self, layers: Mapping[str, nn.Linear], count: int, seed: tuple[int, ...]) -> None:
        self.rows: dict[str, Tensor] = {}
        self.peaks: dict[str, Tensor] = {}
        """Both stay on the device during the call, which does not wait for copies."""
        self.seconds = 0.0
        """What looking at inputs took."""
        self._count, self._random = count, np.random.default_rng(list(seed))
        super().__init__(layers)

    def of(self, name: str, layer: nn.Linear) -> tuple[Tensor, Tensor]:
        """Rows [count, in] and absolute maximum [in] of a layer's input, on the CPU.

        Zeros if the call did not reach the layer (an expert without tokens).
        """
        owner = self.source.get(name, name)
        if owner in self.rows:
            return self.rows[owner].cpu(), self.peaks[owner].cpu()
        zeros = layer.weight.new_zeros(1, layer.in_features).cpu()
        return zeros, zeros[0]

    def take(self, name: str, x: Tensor) -> None:
        start, flat = time.perf_counter(), x.flatten(0, -2)
        if not len(flat):
            return
        self.peaks[name] = flat.abs().amax(0)
        chosen = self._random.permutation(len(flat))[: self._count]
        self.rows[name] = flat.index_select(0, torch.from_numpy(chosen).to(flat.device))
        self.seconds += time.perf_counter() - start


def equalize(rows: list[Tensor]) -> list[Tensor]:
    """Repeat the rows of each call up to the most rows of any call, so that they can be stacked.

    An expert gets more tokens in one call than in another.
    """
    most = max(map(len, rows))
    return [x if len(x) == most else torch.cat([x] * math.ceil(most / len(x)))[:most] for x in rows]
