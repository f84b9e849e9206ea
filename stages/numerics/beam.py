"""The trellis beam search over timesteps, as a value: `ask` for paths to evaluate, `tell` their errors.

Source: AdaTSQ (2602.09883), sec. 3.3. A path chooses one candidate per step; its score is (mean bits, summed error).
Non-dominated paths survive; of more than `width`, those nearest the origin after both axes are scaled to [0, 1].
No clock, no files, no workers: whoever evaluates may be one process or many, now or after a crash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

Choices = tuple[int, ...]
"""The candidate of every step so far."""


@dataclass(frozen=True, kw_only=True)
class Path:
    """A path through the trellis: its choices, and the sums of their prices (bits) and of their errors."""

    choices: Choices = ()
    price: float = 0.0
    error: float = 0.0


def pareto_front(paths: list[Path]) -> list[Path]:
    """The paths that no other dominates, by rising price and falling error.

    A path dominates another if it is no worse in price and error and better in one. Of paths with equal price and
    error, the first by choices stays.
    """
    front: list[Path] = []
    for path in sorted(paths, key=lambda p: (p.price, p.error, p.choices)):
        if not front or path.error < front[-1].error:
            front.append(path)
    return front


def nearest_origin(front: list[Path], width: int) -> list[Path]:
    """The `width` paths of a front nearest to (least price, least error), by rising price.

    AdaTSQ keeps the paths nearest the origin; scaling both axes to [0, 1] over the front is ours. Ties go by choices.
    """
    if len(front) <= width:
        return front
    prices, errors = [p.price for p in front], [p.error for p in front]

    def squared_distance(path: Path) -> float:
        a = (path.price - min(prices)) / max(max(prices) - min(prices), 1e-300)
        b = (path.error - min(errors)) / max(max(errors) - min(errors), 1e-300)
        return float(a * a + b * b)

    nearest = sorted(front, key=lambda p: (squared_distance(p), p.choices))[:width]
    return sorted(nearest, key=lambda p: (p.price, p.choices))


@dataclass(frozen=True, kw_only=True)
class Beam:
    """State of the search after `level` steps."""

    prices: tuple[tuple[float, ...], ...]
    """`prices[t][c]`: mean bits of candidate c at step t."""
    budget: float
    """Mean bits over all steps that a whole path may have."""
    width: int
    """The most paths that survive a level."""
    level: int = 0
    paths: tuple[Path, ...] = (Path(),)
    """The paths that survive, at most `width`."""
    front: tuple[Path, ...] = (Path(),)
    """The Pareto front of the last level, before it was cut to `width`."""

    @property
    def finished(self) -> bool:
        """Whether every step has a candidate."""
        return self.level == len(self.prices)

    def ask(self) -> list[Choices]:
        """The extensions of the surviving paths that can still end within the budget, in a fixed order."""
        rest = sum(min(row) for row in self.prices[self.level + 1 :])
        limit = self.budget * len(self.prices) + 1e-9
        return [
            (*path.choices, c)
            for path in self.paths
            for c, price in enumerate(self.prices[self.level])
            if path.price + price + rest <= limit
        ]

    def tell(self, errors: Mapping[Choices, float]) -> Beam:
        """The beam one level on; `errors` holds the error that each extension of `ask` adds to its path."""
        extensions = []
        for choices in self.ask():
            parent = next(p for p in self.paths if p.choices == choices[:-1])
            price = self.prices[self.level][choices[-1]]
            extensions.append(Path(choices=choices, price=parent.price + price, error=parent.error + errors[choices]))
        front = pareto_front(extensions)
        survivors = nearest_origin(front, self.width)
        return replace(self, level=self.level + 1, paths=tuple(survivors), front=tuple(front))
