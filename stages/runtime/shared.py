"""One rounded input for all layers that are fed it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

Rounded = tuple[Tensor, "Tensor | None"]
"""A rounded input: values and None, or codes and what they are to be multiplied by."""


class SharedInput:
    """The last rounded input, so that layers fed the same tensor (q, k, v) at the same bits round it once."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._input: Tensor | None = None
        self._version = -1
        self._rounded: dict[tuple[object, ...], Any] = {}

    def rounded(self, x: Tensor, key: tuple[object, ...]) -> Any:
        """What was kept for `x` under `key`, or None."""
        same = self._input is x and self._version == x._version
        return self._rounded.get(key) if same else None

    def keep(self, x: Tensor, key: tuple[object, ...], rounded: Any) -> None:
        """Keep what `x` was rounded to in the way `key`: a Rounded, or what a GPU's kernels make of it."""
        if self._input is not x or self._version != x._version:
            self._input, self._version, self._rounded = x, x._version, {}
        self._rounded[key] = rounded
