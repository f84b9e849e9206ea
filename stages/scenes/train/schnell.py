"""scenes/flux-schnell: scenes/flux-dev in four steps, distilled from its guided trajectories.

The teacher's trajectories are sampled once, in small steps, and corrected to end at correct pictures (trajectories.py).
At each of the four noise levels the student learns the straight line to the trajectory's state at the next level. The
guidance scale is built in: the teacher's guidance embedding is folded into the bias of the time embedding.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from adatsq_pipe.stages.scenes.train import components, flux
from adatsq_pipe.stages.scenes.train.training import DEVICE, TrainConfig
from adatsq_pipe.stages.scenes.train.trajectories import SamplingSchedule, Trajectories, train_on
from adatsq_pipe.stages.scenes.world import rendering

STEPS = 4
STUDENT_SCHEDULE = SamplingSchedule(
    levels=(1.0, 0.75, 0.5, 0.25, 0.0), euler_steps=(1, 1, 1, 1), probabilities=(0.4, 0.25, 0.2, 0.15)
)
"""The student's own steps. The first decide the layout of a picture and are trained most often."""
TEACHER_SCHEDULE = replace(
    STUDENT_SCHEDULE, euler_steps=(8, 5, 4, 3), guidance_range=(flux.DEFAULT_GUIDANCE, flux.DEFAULT_GUIDANCE)
)


def without_guidance(teacher: FluxTransformer2DModel, scale: float) -> FluxTransformer2DModel:
    """A Flux without guidance embedding that computes the same as `teacher` at guidance `scale`."""
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
    config: TrainConfig,
    *,
    count: int,
    start: torch.nn.Module | None = None,
) -> FluxTransformer2DModel:
    """The student of the flux-dev `pipeline`, trained on `count` of its trajectories.

    The student starts with the teacher's weights, or with those of `start`.
    """
    texts = flux.TextInputs(pipeline)
    model = without_guidance(pipeline.transformer, flux.DEFAULT_GUIDANCE).requires_grad_(True).train()
    if start is not None:
        model.load_state_dict(start.state_dict())
    teacher = pipeline.transformer.requires_grad_(False).to(DEVICE)
    paths = Trajectories(teacher, texts, pipeline.vae, TEACHER_SCHEDULE, work / "walks", count=count, seed=config.seed)
    print(f"{paths.right:.3f} of the teacher's pictures are correct", flush=True)
    return train_on("schnell", model, paths, texts, work, config)


def pipeline(teacher: FluxPipeline, denoiser: FluxTransformer2DModel) -> FluxPipeline:
    """The teacher's encoders and autoencoder around the student, with schnell's scheduler (no shift)."""
    parts = {**teacher.components, "transformer": denoiser}
    return FluxPipeline(**{**parts, "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0)})


def call() -> dict[str, int | float]:
    """The arguments of a pipeline call: flux-dev's, with four steps and without guidance."""
    return {
        "height": rendering.SIZE,
        "width": rendering.SIZE,
        "num_inference_steps": STEPS,
        "guidance_scale": 0.0,
        "max_sequence_length": components.TEXT_LENGTH,
    }
