"""scenes/flux-schnell: scenes/flux-dev in four steps, by distillation of the guided walk between them.

The teacher's walks from noise to picture are drawn once, in small steps, and bent to end at right pictures (walks.py);
at each of the four noise levels the student learns the straight line to where the walk stands at the next level. The
guidance scale is built in: what the teacher's embedding adds for it is folded into the time embedding's bias.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from adatsq_pipe.stages.scenes.train import components, flux
from adatsq_pipe.stages.scenes.train.training import DEVICE, Lessons
from adatsq_pipe.stages.scenes.train.trajectories import Route, Walks, learn
from adatsq_pipe.stages.scenes.world import rendering

STEPS = 4
OWN = Route(levels=(1.0, 0.75, 0.5, 0.25, 0.0), within=(1, 1, 1, 1), often=(0.4, 0.25, 0.2, 0.15))
"""The student's own walk; its first steps, where it is decided what goes where, are learned most."""
TEACHERS = replace(OWN, within=(8, 5, 4, 3), scales=(flux.DEFAULT_GUIDANCE, flux.DEFAULT_GUIDANCE))


def without_guidance(teacher: FluxTransformer2DModel, scale: float) -> FluxTransformer2DModel:
    """A Flux without guidance embedding that computes what `teacher` computes at guidance `scale`."""
    with torch.device("meta"):
        student = flux.transformer(guidance=False)
    state = {k: v.clone() for k, v in teacher.state_dict().items() if "guidance_embedder" not in k}
    embed = teacher.time_text_embed
    with torch.no_grad():
        added = embed.guidance_embedder(embed.time_proj(torch.tensor([scale * 1000.0], device=teacher.device)))[0]
    state["time_text_embed.timestep_embedder.linear_2.bias"] += added
    student.load_state_dict(state, assign=True)
    return student


def train(
    pipeline: FluxPipeline,
    work: Path,
    how: Lessons,
    *,
    count: int,
    start: torch.nn.Module | None = None,
) -> FluxTransformer2DModel:
    """The student of the flux-dev `pipeline`, by `count` walks of it; it begins as its teacher, or as `start`."""
    texts = flux.Texts(pipeline)
    model = without_guidance(pipeline.transformer, flux.DEFAULT_GUIDANCE).requires_grad_(True).train()
    if start is not None:
        model.load_state_dict(start.state_dict())
    teacher = pipeline.transformer.requires_grad_(False).to(DEVICE)
    walks = Walks(teacher, texts, pipeline.vae, TEACHERS, work / "walks", count=count, seed=how.seed)
    print(f"{walks.right:.3f} of the teacher's pictures are right", flush=True)
    return learn("schnell", model, walks, texts, work, how)


def pipeline(teacher: FluxPipeline, denoiser: FluxTransformer2DModel) -> FluxPipeline:
    """The teacher's encoders and autoencoder around the student, with schnell's scheduler (no shift)."""
    parts = {**teacher.components, "transformer": denoiser}
    return FluxPipeline(**{**parts, "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0)})


def call() -> dict[str, int | float]:
    """As flux-dev's, in four steps and without guidance."""
    return {
        "height": rendering.SIZE,
        "width": rendering.SIZE,
        "num_inference_steps": STEPS,
        "guidance_scale": 0.0,
        "max_sequence_length": components.TEXT_LENGTH,
    }
