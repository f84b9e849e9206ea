"""What the plots share: matplotlib, and names of layers along an axis."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED = 90
"""At most so many layers are named one by one; of more, only their blocks are."""
LABELS = 45
"""At most so many blocks are named."""
ROW_INCHES = 0.14
"""Height of a named layer."""


def pyplot() -> ModuleType:
    """Matplotlib's pyplot, drawing to files."""
    import matplotlib  # takes a second to import; `run` with nothing to do draws nothing

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # after the backend is chosen

    plt.rcParams.update({"text.parse_math": False, "text.usetex": False})
    """Names of models and captions are plain text: a dollar sign in them begins no formula."""

    module: ModuleType = plt
    return module


def save(figure: Figure, file: Path | BytesIO) -> None:
    """Write the figure as PNG and forget it."""
    figure.savefig(file, dpi=100)
    pyplot().close(figure)


def height_of(layers: int) -> float:
    """Height of a figure with one row for each layer, in inches."""
    return 1.4 + ROW_INCHES * min(max(layers, 18), NAMED)


def name_layers(axis: Axes, names: Sequence[str]) -> None:
    """Name the rows of `axis`: every layer where that fits, else the first layer of every block, thinned out."""
    labels = list(enumerate(names)) if len(names) <= NAMED else _blocks(names)
    axis.set_yticks([place for place, _ in labels], [name for _, name in labels], fontsize=6)
    axis.tick_params(axis="y", length=2)


def _blocks(names: Sequence[str]) -> list[tuple[int, str]]:
    """(place of its first layer, name) of blocks: what a layer's name has up to its first number."""
    blocks = [match.group(1) if (match := re.match(r"(.*?\.\d+)\.", name)) else name for name in names]
    firsts = [(place, block) for place, block in enumerate(blocks) if place == 0 or block != blocks[place - 1]]
    return firsts[:: -(-len(firsts) // LABELS)]
