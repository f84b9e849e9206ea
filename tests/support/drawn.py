"""What a test can say of a picture that the program has drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image


def pixels(path: Path) -> npt.NDArray[np.int64]:
    """[height, width, 3], 0 to 255."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(np.int64)


def coloured(path: Path) -> float:
    """The share of pixels that are neither black, white nor grey: axes and text alone have none."""
    found = pixels(path)
    return float((found.max(-1) - found.min(-1) > 30).mean())
