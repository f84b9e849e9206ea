"""Which activation bit-width every layer has at every timestep, and how a budget of bits is spent."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass

WEIGHT_ONLY = 16
"""Bits that stand for "activations are not quantized"."""


@dataclass(frozen=True)
class Policy:
    """`bits[t][l]`: activation bits of layer l at step t. Immutable; equal policies have equal digests."""

    bits: tuple[tuple[int, ...], ...]

    @property
    def mean(self) -> float:
        """Mean bits over steps and layers (the paper's price)."""
        return sum(map(sum, self.bits)) / sum(map(len, self.bits))

    def weighted_mean(self, weights: Sequence[float]) -> float:
        """Mean bits with every layer weighted, e.g. by its multiply-accumulates."""
        total = sum(weights) * len(self.bits)
        return sum(b * w for row in self.bits for b, w in zip(row, weights, strict=True)) / total

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(self.bits).encode()).hexdigest()


def uniform(steps: int, layers: int, bits: int) -> Policy:
    """The same bits everywhere."""
    return Policy(((bits,) * layers,) * steps)


def rounding_error(bits: int) -> float:
    """Mean squared error of rounding to 2^bits levels over a range, up to a factor that all bit-widths share."""
    return 1 / (2.0**bits - 1) ** 2


def bits_by_fisher(
    fisher_TL: Sequence[Sequence[float]], bits: Sequence[int], budget: float, sharpness: tuple[float, float]
) -> tuple[tuple[int, ...], ...]:
    """Bits of every layer at every step, the mean at most `budget`: those of highest Fisher score get the highest.

    AdaTSQ (sec. 3.3) lets the Fisher rank at a step decide which layers get the higher bits, and is silent on how many.
    Ours: as many as make the sum of score x rounding error least, over all steps and layers at once, where a score is
    (step's mean)^sharpness[1] x (layer's share of it)^sharpness[0]. Steps may have different numbers of layers.
    """
    within, across = sharpness
    means = [sum(row) / len(row) or 1.0 for row in fisher_TL]
    flat = [
        [mean**across * (score / mean) ** within * rounding_error(b) for b in bits]
        for row, mean in zip(fisher_TL, means, strict=True)
        for score in row
    ]
    spent = iter(allocate_greedily(flat, bits, budget))
    return tuple(tuple(next(spent) for _ in row) for row in fisher_TL)


def allocate_greedily(errors_LB: Sequence[Sequence[float]], bits: Sequence[int], budget: float) -> tuple[int, ...]:
    """Bits of every layer, the mean at most `budget`: from the fewest, the raise that mends most per bit comes first.

    `errors_LB[l][i]` is the error with layer l at `bits[i]`; `bits` rises. A raise may skip widths; ties go to the
    earlier layer. ValueError if the fewest bits are above the budget.
    """
    if bits[0] > budget + 1e-9:
        raise ValueError(f"a budget of {budget:g} mean bits is below the fewest there are, {bits[0]}")
    places, left = [0] * len(errors_LB), (budget - bits[0]) * len(errors_LB) + 1e-9

    def best_raise(layer: int) -> tuple[float, int, int] | None:
        """(-gain per bit, layer, place) of the best raise that `left` still pays for."""
        errors, now = errors_LB[layer], places[layer]
        raises = [
            ((errors[place] - errors[now]) / (bits[place] - bits[now]), layer, place)
            for place in range(now + 1, len(bits))
            if bits[place] - bits[now] <= left and errors[place] < errors[now]
        ]
        return min(raises, default=None)

    waiting = [found for layer in range(len(errors_LB)) if (found := best_raise(layer))]
    heapq.heapify(waiting)
    while waiting:
        _, layer, place = heapq.heappop(waiting)
        price = bits[place] - bits[places[layer]]
        if price <= left:
            left -= price
            places[layer] = place
        if found := best_raise(layer):
            heapq.heappush(waiting, found)
    return tuple(bits[place] for place in places)
