"""GLM-Image hands its denoiser a cache at every call, which only pictures that are to be changed are written to."""

from __future__ import annotations

from adatsq_pipe.stages.architecture.families._family import Family

FAMILY = Family(
    transformer="GlmImageTransformer2DModel",
    why="its cache is used for pictures that are given alone",
    cached_with="image",
)
