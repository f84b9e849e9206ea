"""Cosmos 3 denoises one packed sequence: its first argument holds token ids, its timesteps are named by modality."""

from __future__ import annotations

from adatsq_pipe.stages.architecture.families._family import Family

FAMILY = Family(
    transformer="Cosmos3OmniTransformer",
    why="its first argument holds token ids, and it names the timestep after what is denoised",
    timestep="vision_timesteps",
    sample="vision_tokens",
)
