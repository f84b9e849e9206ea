"""Names by which models and pipelines of diffusers call things. Imports nothing."""

from __future__ import annotations

import re

CONDITIONS = ("prompt", "class_labels")
"""Arguments of a pipeline's call that say what is to be drawn, in the order in which they are looked for."""
TIMESTEPS = ("timestep", "timesteps", "t", "time_step", "sigma", "sigmas", "noise_level")
"""Arguments of a denoiser's call that say the noise level, likewise."""


def pattern_of(name: str) -> str:
    """The name of a module with its block numbers as `*`."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
