"""Which activation bits a quantized model runs at, counted while it draws."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from adatsq_pipe.stages.denoiser.call import Call
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY
from adatsq_pipe.stages.runtime.model import quantized_layers


class BitsRun:
    """Counts the bits of every rounded layer at every call of a run. A policy says the mean; this is what became of it.

    A layer counts at the steps at which its denoiser (of `parts`, by component) is called; of several calls of a step
    each counts its share.
    """

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        layers = {name: quantized_layers(part).values() for name, part in parts.items()}
        self._rounded = {
            name: [layer for layer in found if any(bits < WEIGHT_ONLY for bits in layer.policy.tolist())]
            for name, found in layers.items()
        }
        self._sums: dict[tuple[int, str], list[int]] = {}

    def see(self, call: Call) -> None:
        """Count the bits of `call`, which is about to be made."""
        self._sums.setdefault((call.step, call.part), []).append(sum(layer.bits for layer in self._rounded[call.part]))

    @property
    def mean(self) -> float | None:
        """Mean bits over steps and rounded layers so far; None where no layer is rounded."""
        layers = sum(len(self._rounded[part]) for _, part in self._sums)
        bits = sum(sum(sums) / len(sums) for sums in self._sums.values())
        return bits / layers if layers else None
