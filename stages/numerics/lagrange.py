"""Bits divided among items by a Lagrangian: the least sum of costs under a bound on the mean price.

For a multiplier m every item takes the width of least cost + m x price x width. Over all m these choices walk down the
lower convex hulls of the items' costs, the steepest segment first (Everett 1963; Shoham and Gersho 1988). Each point
of that walk is the optimum at its own mean price. What a budget leaves after the last whole segment is filled greedily.
No torch here: the search's coordinator runs this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Walk:
    """The hulls of all items, and their segments by falling gain per price.

    `cost_NW` [items, widths] is what an item costs at each of `widths`, which rise. A width that costs more than a
    smaller one is never taken. `price_N` [items] is what one bit of an item costs, of mean 1.
    """

    cost_NW: Array
    widths: tuple[int, ...]
    price_N: Array

    @classmethod
    def of(cls, cost_NW: Array, widths: Sequence[int], price_N: Array | None = None) -> Walk:
        """Raises ValueError for widths that do not rise, or shapes that do not fit."""
        price = np.ones(len(cost_NW)) if price_N is None else np.asarray(price_N, dtype=np.float64)
        if list(widths) != sorted(set(widths)) or cost_NW.shape != (len(price), len(widths)):
            raise ValueError(f"costs of shape {cost_NW.shape} do not fit {len(price)} items at widths {list(widths)}")
        mean = price.mean()
        price = price / mean if mean > 0 else np.ones(len(price))
        return cls(cost_NW=cost_NW, widths=tuple(widths), price_N=price)

    @cached_property
    def _segments(self) -> tuple[Array, Index, Index]:
        """(gain per price, item, index of the width it leads to), the steepest first, ties by item."""
        slopes, items, targets = list[Array](), list[Index](), list[Index]()
        bits = np.array(self.widths, dtype=np.float64)
        now = np.zeros(len(self.cost_NW), dtype=np.int64)
        everyone = np.arange(len(now))
        for _ in range(len(bits) - 1):
            gain = self.cost_NW[everyone, now][:, None] - self.cost_NW
            run = bits[None] - bits[now][:, None]
            slope = np.where(run > 0, gain / np.where(run > 0, run, 1.0), -1.0)
            best = slope.max(1)
            # of equal slopes the last: a hull has no point inside a segment
            target = len(bits) - 1 - np.argmax(slope[:, ::-1] >= best[:, None], axis=1)
            moves = best > 0
            slopes.append(best[moves] / np.maximum(self.price_N[moves], 1e-12))
            items.append(everyone[moves])
            targets.append(target[moves])
            now = np.where(moves, target, now)
        slope, item, target = np.concatenate(slopes), np.concatenate(items), np.concatenate(targets)
        order = np.lexsort((target, item, -slope))
        return slope[order], item[order], target[order]

    def mean(self, choice_N: Index) -> float:
        """Mean bits of a choice, weighted by the prices."""
        return float((np.array(self.widths)[choice_N] * self.price_N).mean())

    def at_multiplier(self, multiplier: float) -> Index:
        """The choice of least cost + multiplier x price x bits; [items] of indices of widths."""
        slope, item, target = self._segments
        choice = np.zeros(len(self.cost_NW), dtype=np.int64)
        taken = slope > multiplier
        np.maximum.at(choice, item[taken], target[taken])
        return choice

    def at_budget(self, budget: float) -> tuple[Index, float]:
        """(the choice of mean price at most `budget`, the multiplier at which its whole segments are the optimum).

        The multiplier is the gain per price of the first segment that does not fit, or of the last one if all fit.
        Raises ValueError if the smallest width is above the budget.
        """
        bits = np.array(self.widths, dtype=np.float64)
        if bits[0] > budget + 1e-9:
            raise ValueError(f"a budget of {budget:g} mean bits is below the fewest there are, {self.widths[0]}")
        slope, item, target = self._segments
        choice = np.zeros(len(self.cost_NW), dtype=np.int64)
        total = float((budget - bits[0]) * self.price_N.sum()) + 1e-9
        if not len(item):
            return choice, 0.0
        spent = self._spent
        whole = int(np.searchsorted(spent, total, side="right"))
        np.maximum.at(choice, item[:whole], target[:whole])
        left = total - (float(spent[whole - 1]) if whole else 0.0)
        return self._filled(choice, left), float(slope[min(whole, len(slope) - 1)])

    @cached_property
    def _spent(self) -> Array:
        """What all segments up to each cost together, in bits times price beyond the smallest width."""
        bits, (_, item, target) = np.array(self.widths, dtype=np.float64), self._segments
        order = np.lexsort((target, item))  # an item's segments one after the other: each starts where the last ended
        before = np.zeros_like(target)
        same = item[order][1:] == item[order][:-1]
        before[order[1:][same]] = target[order[:-1][same]]
        result: Array = np.cumsum((bits[target] - bits[before]) * self.price_N[item])
        return result

    def _filled(self, choice: Index, left: float) -> Index:
        """The choice with what is left of the budget spent on the raises of largest gain per price that fit."""
        bits, everyone = np.array(self.widths, dtype=np.float64), np.arange(len(choice))
        run = bits[None] - bits[choice][:, None]
        gain = self.cost_NW[everyone, choice][:, None] - self.cost_NW
        price = run * self.price_N[:, None]
        rate = np.where((run > 0) & (gain > 0), gain / np.maximum(price, 1e-12), -1.0)
        choice = choice.copy()
        while True:
            fits = np.where(price <= left, rate, -1.0)
            one, to = divmod(int(fits.argmax()), len(bits))
            if fits[one, to] <= 0:
                return choice
            left -= float(price[one, to])
            choice[one] = to
            run_of = bits - bits[to]
            gain_of = self.cost_NW[one, to] - self.cost_NW[one]
            price[one] = run_of * self.price_N[one]
            rate[one] = np.where((run_of > 0) & (gain_of > 0), gain_of / np.maximum(price[one], 1e-12), -1.0)
