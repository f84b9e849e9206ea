"""DiT's last layer has no embedder of its own: it runs that of the first block once more."""

from __future__ import annotations

from adatsq_pipe.stages.architecture.families._family import Family

_EMBEDDER = "transformer_blocks.0.norm1.emb.timestep_embedder"

FAMILY = Family(
    transformer="DiTTransformer2DModel",
    why="the first block's embedder runs twice in a call",
    repeated=(f"{_EMBEDDER}.linear_1", f"{_EMBEDDER}.linear_2"),
)
