"""Which activation bit-width every layer has at every timestep, and how candidates for one step are made."""

from __future__ import annotations

import hashlib
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


def quotas(layers: int, shares: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers of layers for `shares` that sum to one, by largest remainder, summing to `layers`."""
    exact = [share * layers for share in shares]
    counts = [int(value + 1e-9) for value in exact]
    rest = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in rest[: layers - sum(counts)]:
        counts[i] += 1
    return tuple(counts)


def assign(fisher_L: Sequence[float], bits: Sequence[int], shares: Sequence[float]) -> tuple[int, ...]:
    """Bits of every layer at one step: the layers of highest Fisher score get the highest bits (AdaTSQ, sec. 3.3).

    `bits` rises; `shares[i]` of the layers get `bits[i]`. Ties go to the earlier layer.
    """
    order = sorted(range(len(fisher_L)), key=lambda i: (-fisher_L[i], i))
    counts = quotas(len(fisher_L), shares)
    row, place = [0] * len(fisher_L), 0
    for width, count in sorted(zip(bits, counts, strict=True), reverse=True):
        for layer in order[place : place + count]:
            row[layer] = width
        place += count
    return tuple(row)


def spend(errors_LB: Sequence[Sequence[float]], bits: Sequence[int], budget: float) -> tuple[int, ...]:
    """Bits of every layer, the mean at most `budget`: from the fewest, the raise that mends most per bit comes first.

    `errors_LB[l][i]` is the error with layer l at `bits[i]`; `bits` rises. A raise may skip widths; ties go to the
    earlier layer. ValueError if the fewest bits are above the budget.
    """
    if bits[0] > budget + 1e-9:
        raise ValueError(f"a budget of {budget:g} mean bits is below the fewest there are, {bits[0]}")
    places, left = [0] * len(errors_LB), (budget - bits[0]) * len(errors_LB) + 1e-9
    while True:
        best: tuple[float, int, int] | None = None
        for layer, errors in enumerate(errors_LB):
            for place in range(places[layer] + 1, len(bits)):
                price = bits[place] - bits[places[layer]]
                gain = (errors[places[layer]] - errors[place]) / price
                if price <= left and gain > 0 and (best is None or gain > best[0]):
                    best = (gain, layer, place)
        if best is None:
            return tuple(bits[place] for place in places)
        left -= bits[best[2]] - bits[places[best[1]]]
        places[best[1]] = best[2]
