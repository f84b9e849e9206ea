"""Which activation bit-width every layer has at every timestep, and how a budget of bits is divided.

Source: AdaTSQ (2602.09883), sec. 3.3, where a policy is a path and its price the mean bits. No torch here: `status`
reads policies.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass

WEIGHT_ONLY = 16
"""Bits that stand for "activations are not quantized"."""


@dataclass(frozen=True)
class Policy:
    """`bits[step][layer]`, rectangular, each from 2 to `WEIGHT_ONLY`. Immutable; equal policies have equal digests.

    Raises ValueError for no steps or no layers, for rows of unequal length, and for other bit-widths.
    """

    bits: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.bits or not self.bits[0]:
            raise ValueError("a policy needs at least one step and one layer")
        for step, row in enumerate(self.bits):
            if len(row) != len(self.bits[0]):
                raise ValueError(f"step {step} of a policy has {len(row)} layers, step 0 has {len(self.bits[0])}")
            if wrong := [bits for bits in row if not 2 <= bits <= WEIGHT_ONLY]:
                raise ValueError(f"step {step} of a policy has {wrong[0]} bits; bits lie in 2..{WEIGHT_ONLY}")

    @classmethod
    def uniform(cls, steps: int, layers: int, bits: int) -> Policy:
        """The same bits everywhere."""
        return cls(((bits,) * layers,) * steps)

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self.bits)

    @property
    def layers(self) -> int:
        """The number of layers."""
        return len(self.bits[0])

    def of_step(self, step: int) -> tuple[int, ...]:
        """Bits of every layer at a step."""
        return self.bits[step]

    def of_layer(self, layer: int) -> tuple[int, ...]:
        """Bits of a layer at every step."""
        return tuple(row[layer] for row in self.bits)

    @property
    def mean(self) -> float:
        """Mean bits over steps and layers (AdaTSQ's price)."""
        return sum(map(sum, self.bits)) / (self.steps * self.layers)

    def weighted_mean(self, weights: Sequence[float]) -> float:
        """Mean bits with every layer weighted, e.g. by its multiply-accumulates; `weights` has one number a layer."""
        total = sum(weights) * self.steps
        return sum(b * w for row in self.bits for b, w in zip(row, weights, strict=True)) / total

    @property
    def digest(self) -> str:
        """SHA-256 of the bits, as hexadecimal digits."""
        return hashlib.sha256(repr(self.bits).encode()).hexdigest()


def rounding_error(bits: int) -> float:
    """Mean squared error of rounding a range to 2^bits levels, up to a factor that all bit-widths share.

    It is step^2 / 12, and the step is range / (2^bits - 1).
    """
    return 1 / (2.0**bits - 1) ** 2


def bits_by_fisher(
    fisher_TL: Sequence[Sequence[float]], bits: Sequence[int], budget: float, sharpness: tuple[float, float]
) -> tuple[tuple[int, ...], ...]:
    """Bits of every layer at every step, [step][layer], of mean at most `budget`: high Fisher scores get high bits.

    AdaTSQ (sec. 3.3) ranks the layers of a step by Fisher score to decide which get the higher bits; it does not say
    how many do. Ours: as many as minimise the sum of score x rounding error over all steps and layers at once, where a
    score is (mean of the step)^sharpness[1] x (layer's score / that mean)^sharpness[0]. `fisher_TL[step][layer]` may
    have other numbers of layers at other steps. `bits` rises. Raises ValueError if `bits[0]` exceeds the budget.
    """
    within, across = sharpness
    means = [sum(row) / len(row) or 1.0 for row in fisher_TL]
    errors = [
        [mean**across * (score / mean) ** within * rounding_error(b) for b in bits]
        for row, mean in zip(fisher_TL, means, strict=True)
        for score in row
    ]
    allocation = iter(allocate_greedily(errors, bits, budget))
    return tuple(tuple(next(allocation) for _ in row) for row in fisher_TL)


def allocate_greedily(errors_LB: Sequence[Sequence[float]], bits: Sequence[int], budget: float) -> tuple[int, ...]:
    """Bits of every layer, of mean at most `budget`: from the fewest bits up, the raise of largest gain per bit first.

    `errors_LB[l][i]` is the error with layer l at `bits[i]`; `bits` rises. A raise may skip widths; ties go to the
    earlier layer, then to the smaller raise. Raises ValueError if `bits[0]` exceeds the budget.
    """
    if bits[0] > budget + 1e-9:
        raise ValueError(f"a budget of {budget:g} mean bits is below the fewest there are, {bits[0]}")
    choice, left = [0] * len(errors_LB), (budget - bits[0]) * len(errors_LB) + 1e-9

    def best_raise(layer: int) -> tuple[float, int, int] | None:
        """(-gain per bit, layer, index of the new bits) of the best raise that `left` still pays for."""
        errors, now = errors_LB[layer], choice[layer]
        raises = [
            ((errors[i] - errors[now]) / (bits[i] - bits[now]), layer, i)
            for i in range(now + 1, len(bits))
            if bits[i] - bits[now] <= left and errors[i] < errors[now]
        ]
        return min(raises, default=None)

    queue = [step for layer in range(len(errors_LB)) if (step := best_raise(layer))]
    heapq.heapify(queue)
    while queue:
        _, layer, i = heapq.heappop(queue)
        price = bits[i] - bits[choice[layer]]
        if price <= left:
            left -= price
            choice[layer] = i
        if step := best_raise(layer):
            heapq.heappush(queue, step)
    return tuple(bits[i] for i in choice)
