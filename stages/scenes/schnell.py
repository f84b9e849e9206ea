"""scenes/flux-schnell: scenes/flux-dev in four steps, by distillation of the guided path between them.

For each of the four noise levels the student learns the straight line from a noisy latent to where several small steps
of the teacher lead by the next level (progressive distillation, Salimans & Ho 2202.00512). The guidance scale is built
in: what the teacher's embedding adds for it is folded into the time embedding's bias.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor

from adatsq_pipe.stages.scenes import components, flux, world
from adatsq_pipe.stages.scenes.training import DEVICE, generator, train_part

STEPS = 4
TEACHER_STEPS = 4
"""Steps of the teacher within one of the student's."""
_DRAWN = (0.4, 0.25, 0.2, 0.15)
"""How often training draws each of the student's steps: the first decides what goes where."""


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
    batches: flux.Batches,
    work: Path,
    *,
    steps: int,
    rate: float,
    compile: bool,
    start: torch.nn.Module | None = None,
) -> FluxTransformer2DModel:
    """The student of the flux-dev `pipeline`; it begins as its teacher, or as `start`."""
    teacher: FluxTransformer2DModel = pipeline.transformer.requires_grad_(False)
    model = without_guidance(teacher, flux.DEFAULT_GUIDANCE).requires_grad_(True).train()
    if start is not None:
        model.load_state_dict(start.state_dict())
    field: flux.Field = torch.compile(model, dynamic=False) if compile else model
    guide: flux.Field = torch.compile(teacher, dynamic=False) if compile else teacher
    levels = torch.linspace(1, 0, STEPS + 1)

    def loss(step: int) -> Tensor:
        source = generator(batches.seed, "schnell", step)
        long = step % flux.LONG_EVERY == flux.LONG_EVERY - 1
        size, length = (batches.size // 8, flux.LONG_TEXT) if long else (batches.size, components.TEXT_LENGTH)
        rows = torch.randint(len(batches.ids), (size,), generator=source)
        clean, ids = batches.clean[rows].float(), batches.ids[rows]
        place = torch.multinomial(torch.tensor(_DRAWN), size, replacement=True, generator=source)
        t, until = levels[place], levels[place + 1]
        start = torch.lerp(clean, torch.randn(clean.shape, generator=source), t.view(-1, 1, 1)).to(DEVICE)
        t, until = t.to(DEVICE), until.to(DEVICE)
        with torch.no_grad():
            text, x = batches.read(ids, components.TEXT_LENGTH), start
            scale = torch.full_like(t, flux.DEFAULT_GUIDANCE)
            for i in range(TEACHER_STEPS):
                now = torch.lerp(t, until, i / TEACHER_STEPS)
                x = x - flux.velocity(guide, text, x, now, scale) * ((t - until) / TEACHER_STEPS).view(-1, 1, 1)
            target = (start - x) / (t - until).view(-1, 1, 1)
        return (flux.velocity(field, batches.read(ids, length), start, t, None) - target).square().mean()

    smooth = train_part("schnell", model, loss, steps=steps, rate=rate, work=work, average=0.998)
    assert isinstance(smooth, FluxTransformer2DModel)
    return smooth


def pipeline(teacher: FluxPipeline, denoiser: FluxTransformer2DModel) -> FluxPipeline:
    """The teacher's encoders and autoencoder around the student, with schnell's scheduler (no shift)."""
    parts = {**teacher.components, "transformer": denoiser}
    return FluxPipeline(**{**parts, "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0)})


def call() -> dict[str, int | float]:
    """As flux-dev's, in four steps and without guidance."""
    return {
        "height": world.SIZE,
        "width": world.SIZE,
        "num_inference_steps": STEPS,
        "guidance_scale": 0.0,
        "max_sequence_length": components.TEXT_LENGTH,
    }
