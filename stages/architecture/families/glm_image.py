"""GLM-Image passes its denoiser a cache at every call, which is filled only when a picture is edited."""

from __future__ import annotations

from adatsq_pipe.stages.architecture.families._family import Family

FAMILY = Family(
    transformer="GlmImageTransformer2DModel",
    why="its cache is used only with input pictures",
    cached_with="image",
)
