"""The trained pipelines that ship with the package. Imports no torch."""

from __future__ import annotations

from pathlib import Path

MODELS_FOLDER = Path(__file__).parent / "models"


def builtin_models() -> dict[str, Path]:
    """The folder of each built-in pipeline, by its name: scenes/<family>."""
    return {f"scenes/{folder.name}": folder for folder in sorted(MODELS_FOLDER.iterdir()) if folder.is_dir()}
