"""One width a step for the whole model, under a budget of mean bits, if the errors of the steps add up.

Source: TMPDiff (2603.14062): quantization errors add up over timesteps, so one measurement a step replaces trying all
policies, and a bisection finds the widths. Its abstract says no more. Ours: what is bisected is the price of a bit, the
Lagrange multiplier of the budget, since every step then chooses for itself. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence

HALVINGS = 200
"""More than it takes to come from any price to two neighbouring float64 numbers."""


def bits_by_bisection(
    errors_TW: Sequence[Sequence[float]], widths: Sequence[int], budget: float, weights_T: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Bits of every step, of mean at most `budget`.

    `errors_TW[t][i]` is the error with step t at `widths[i]`; `widths` rises. `weights_T` (layers of a step; 1 of each
    by default) weigh the mean. A price of a bit gives every step the width of least error + price x bits; the lowest
    price that keeps to the budget gives the least sum of errors of all policies with its mean or fewer bits. What is
    left of the budget is spent on raises, the largest gain per bit first. Raises ValueError if `widths[0]` exceeds the
    budget.
    """
    if widths[0] > budget + 1e-9:
        raise ValueError(f"a budget of {budget:g} mean bits is below the fewest there are, {widths[0]}")
    weights = list(weights_T) if weights_T else [1] * len(errors_TW)
    most = budget * sum(weights) + 1e-9

    def at(price: float) -> list[int]:
        """The index of every step's width; of equals the fewest bits."""
        return [
            min(range(len(widths)), key=lambda i: (errors[i] + price * weight * widths[i], i))
            for errors, weight in zip(errors_TW, weights, strict=True)
        ]

    def spent(choice: Sequence[int]) -> int:
        return sum(widths[i] * weight for i, weight in zip(choice, weights, strict=True))

    low, high = 0.0, 1.0
    if spent(at(low)) > most:
        while spent(at(high)) > most:
            low, high = high, 2 * high
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if spent(at(middle)) > most else (low, middle)
        low = high
    choice = at(low)
    while raised := _best_raise(errors_TW, widths, weights, choice, most - spent(choice)):
        choice[raised[0]] = raised[1]
    return tuple(widths[i] for i in choice)


def _best_raise(
    errors_TW: Sequence[Sequence[float]], widths: Sequence[int], weights: Sequence[int], choice: list[int], left: float
) -> tuple[int, int] | None:
    """(step, index of its new width) of the raise of largest gain per bit that `left` pays for, if any gains."""
    raises = [
        ((errors[i] - errors[now]) / ((widths[i] - widths[now]) * weight), t, i)
        for t, (errors, weight, now) in enumerate(zip(errors_TW, weights, choice, strict=True))
        for i in range(now + 1, len(widths))
        if errors[i] < errors[now] and 0 < (widths[i] - widths[now]) * weight <= left
    ]
    return min(raises)[1:] if raises else None
