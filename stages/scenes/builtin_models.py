"""Where the trained pipelines lie that ship with the package. Imports no torch."""

from __future__ import annotations

from pathlib import Path

SHELF = Path(__file__).parent / "models"


def built_ins() -> dict[str, Path]:
    """Their folders, by the names users give: scenes/<family>."""
    return {f"scenes/{folder.name}": folder for folder in sorted(SHELF.iterdir()) if folder.is_dir()}
