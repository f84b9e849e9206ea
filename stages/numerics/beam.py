"""The trellis beam search over timesteps, as a value: `ask` for paths to evaluate, `tell` their errors.

Source: AdaTSQ (2602.09883, sec. 3.3). A path chooses one candidate per step; its score is (mean bits, summed error).
Non-dominated paths survive; above `width` of them, the ones nearest the origin after both axes are scaled to [0, 1].
No clock, no files, no workers: whoever evaluates may be one process or many, now or after a crash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

Choices = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Path:
    """Candidates chosen so far, with the sums of their prices (bits) and of the errors they led to."""

    choices: Choices = ()
    price: float = 0.0
    error: float = 0.0


def pareto_front(paths: list[Path]) -> list[Path]:
    """The paths that no other beats in price and error at once, by rising price; of equals, the first by choices."""
    front: list[Path] = []
    for path in sorted(paths, key=lambda p: (p.price, p.error, p.choices)):
        if not front or path.error < front[-1].error:
            front.append(path)
    return front


def nearest_origin(front: list[Path], width: int) -> list[Path]:
    """The `width` paths of a front nearest to (least price, least error), both axes scaled to [0, 1] (scaling ours)."""
    if len(front) <= width:
        return front
    prices, errors = [p.price for p in front], [p.error for p in front]

    def distance(path: Path) -> float:
        a = (path.price - min(prices)) / max(max(prices) - min(prices), 1e-300)
        b = (path.error - min(errors)) / max(max(errors) - min(errors), 1e-300)
        return float(a * a + b * b)

    kept = sorted(front, key=lambda p: (distance(p), p.choices))[:width]
    return sorted(kept, key=lambda p: (p.price, p.choices))


@dataclass(frozen=True, kw_only=True)
class Beam:
    """State of the search after `level` steps. `prices[t][c]` is the mean bits of candidate c at step t."""

    prices: tuple[tuple[float, ...], ...]
    budget: float
    width: int
    level: int = 0
    paths: tuple[Path, ...] = (Path(),)
    front: tuple[Path, ...] = (Path(),)

    @property
    def finished(self) -> bool:
        return self.level == len(self.prices)

    def ask(self) -> list[Choices]:
        """The extensions of the kept paths that can still end inside the budget, in a fixed order."""
        rest = sum(min(row) for row in self.prices[self.level + 1 :])
        limit = self.budget * len(self.prices) + 1e-9
        return [
            (*path.choices, c)
            for path in self.paths
            for c, price in enumerate(self.prices[self.level])
            if path.price + price + rest <= limit
        ]

    def tell(self, errors: Mapping[Choices, float]) -> Beam:
        """The beam one level on, given the error that each asked extension adds."""
        grown = []
        for choices in self.ask():
            parent = next(p for p in self.paths if p.choices == choices[:-1])
            price = self.prices[self.level][choices[-1]]
            grown.append(Path(choices=choices, price=parent.price + price, error=parent.error + errors[choices]))
        front = pareto_front(grown)
        kept = nearest_origin(front, self.width)
        return replace(self, level=self.level + 1, paths=tuple(kept), front=tuple(front))
