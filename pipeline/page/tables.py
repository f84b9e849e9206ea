"""Tables of the page: what a reader sees, and what a button saves as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Cell: TypeAlias = str | int | float | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under named columns. `name` is the CSV's file name, without the ending."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    formats: Mapping[str, str] = field(default_factory=dict)
    """By column: how its numbers are shown, as `format` takes it. Others have four significant digits."""

    def plain(self) -> dict[str, object]:
        """As JSON values."""
        return {"name": self.name, "columns": list(self.columns), "rows": [list(row) for row in self.rows]}

    def text(self, column: int, cell: Cell) -> str:
        """A cell of a column, by number, as the page shows it."""
        given = self.formats.get(self.columns[column])
        return shown(cell) if given is None or isinstance(cell, str) or cell is None else format(cell, given)

    def numeric(self, column: int) -> bool:
        """Whether a column, by number, has numbers alone."""
        return not any(isinstance(row[column], str) for row in self.rows)


def shown(cell: Cell) -> str:
    """A cell as text: numbers with four significant digits."""
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
