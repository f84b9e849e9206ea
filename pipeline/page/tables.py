"""Tables of the page: what a reader sees, and what a button saves as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Cell: TypeAlias = str | int | float | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under named columns. `name` is the CSV's file name, without the ending."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def plain(self) -> dict[str, object]:
        """As JSON values."""
        return {"name": self.name, "columns": list(self.columns), "rows": [list(row) for row in self.rows]}


def shown(cell: Cell) -> str:
    """A cell as text: numbers with four significant digits."""
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
