"""Listening to the linear layers of a denoiser during one call: who is fed what, who shares, what is kept of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

GUIDED = 4
"""At most so many guided variants of a sample lie in one call: with and without the prompt, perturbed attention."""


class InputRecorder:
    """Watches the inputs of linear layers during one call. `source` maps a layer to the layer that stored its input;
    `repeated` are layers that ran more than once, whose input is not one thing."""

    KEEP = 8

    def __init__(self, layers: Mapping[str, nn.Linear]) -> None:
        self.source: dict[str, str] = {}
        self.inputs: dict[str, Tensor] = {}
        self.repeated: set[str] = set()
        self._recent: list[tuple[Tensor, str]] = []
        self._handles = [layer.register_forward_pre_hook(self._hook(name)) for name, layer in layers.items()]

    def _hook(self, name: str) -> Any:
        def see(module: nn.Module, args: tuple[Any, ...]) -> None:
            if name in self.source:
                self.repeated.add(name)
                return
            for tensor, owner in self._recent:
                if tensor is args[0]:
                    self.source[name] = owner
                    return
            self.source[name] = name
            self._recent = [*self._recent[-self.KEEP + 1 :], (args[0], name)]
            self.take(name, args[0])

        return see

    def take(self, name: str, x: Tensor) -> None:
        """Keep what is wanted of the input `x` of layer `name`."""
        self.inputs[name] = x

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


class _Sizes(InputRecorder):
    """Keeps the sizes of inputs alone."""

    def take(self, name: str, x: Tensor) -> None:
        self.inputs[name] = x.to("meta")


def listen(forward: Callable[[], Any], listener: InputRecorder) -> InputRecorder:
    """One forward pass, listened to."""
    try:
        forward()
    finally:
        listener.close()
    return listener


def survey(
    forward: Callable[[], Any], layers: Mapping[str, nn.Linear], samples: Fraction | int
) -> dict[str, list[Any]]:
    """What a forward pass of `samples` samples (guided ones: maybe half a one) shows: `layers` (see `survey_of`), and
    the names of those that are left because they ran more than once (`repeated`) or never (`unused`)."""
    listener = listen(forward, _Sizes(layers))
    repeated = sorted(listener.repeated)
    if repeated:
        listener = listen(forward, _Sizes({n: x for n, x in layers.items() if n not in repeated}))
    rows = []
    for name, source in listener.source.items():
        layer, x = layers[name], listener.inputs[source]
        tokens = x.numel() // x.shape[-1]
        conditioning = x.dim() <= 2 and tokens <= GUIDED * samples
        rows.append(
            {
                "name": name,
                "in": layer.in_features,
                "out": layer.out_features,
                "kind": "conditioning" if conditioning else "tokens",
                "source": source,
                "macs": tokens * layer.in_features * layer.out_features // samples,
            }
        )
    unused = sorted(set(layers) - set(listener.source) - set(repeated))
    return {"layers": rows, "unused": unused, "repeated": repeated}


class RowSampler(InputRecorder):
    """Keeps a seeded subsample of rows, and the absolute maximum per channel, of every distinct input."""

    def __init__(self, layers: Mapping[str, nn.Linear], count: int, seed: tuple[int, ...]) -> None:
        import numpy as np

        self.rows: dict[str, Tensor] = {}
        self.peaks: dict[str, Tensor] = {}
        self._count, self._random = count, np.random.default_rng(list(seed))
        super().__init__(layers)

    def of(self, name: str, layer: nn.Linear) -> tuple[Tensor, Tensor]:
        """Rows and peak of a layer's input; a zero row where the call did not reach it (an expert without tokens)."""
        owner = self.source.get(name, name)
        if owner in self.rows:
            return self.rows[owner], self.peaks[owner]
        nothing = layer.weight.new_zeros(1, layer.in_features).cpu()
        return nothing, nothing[0]

    def take(self, name: str, x: Tensor) -> None:
        import torch

        flat = x.flatten(0, -2)
        if not len(flat):
            return
        self.peaks[name] = flat.abs().amax(0).cpu()
        chosen = self._random.permutation(len(flat))[: self._count]
        self.rows[name] = flat[torch.from_numpy(chosen).to(flat.device)].cpu()


def equalize(rows: list[Tensor]) -> list[Tensor]:
    """Rows of several calls, as many of each: an expert gets more tokens in one call than in another."""
    import torch

    most = max(map(len, rows))
    return [torch.cat([x] * math.ceil(most / len(x)))[:most] for x in rows]
