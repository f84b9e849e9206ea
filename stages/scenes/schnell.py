"""scenes/flux-schnell: scenes/flux-dev in four steps, by distillation of the guided path between them.

The teacher's paths from noise to picture are drawn once, in small steps, and kept where the picture shows what was
asked for (rejection sampling, by the world's own judge, on training captions alone); at each of the four noise levels
the student learns the straight line to where the path stands at the next level (progressive distillation, Salimans & Ho
2202.00512). The guidance scale is built in: what the teacher's embedding adds for it is folded into the time
embedding's bias.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from rich.progress import track
from safetensors.torch import load_file, save
from torch import Tensor

from adatsq_pipe.stages.scenes import captions, components, flux, judge, latents, world
from adatsq_pipe.stages.scenes.training import DEVICE, generator, train_part
from adatsq_pipe.storage.files import write_bytes

STEPS = 4
TEACHER_STEPS = (8, 5, 4, 3)
"""Steps of the teacher within each of the student's: most where it is decided what goes where."""
_DRAWN = (0.4, 0.25, 0.2, 0.15)
"""How often training draws each of the student's steps, for the same reason."""
_CHUNK = 128


def levels() -> Tensor:
    """Noise levels [STEPS + 1] that the student's steps begin and end at, 1 to 0."""
    return torch.linspace(1, 0, STEPS + 1)


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


class Paths:
    """The teacher's paths from noise for training captions, in chunks that are kept and seeded.

    `states` fp16 [N, STEPS + 1, tokens, channels] at the student's noise levels, `ids` [N, TEXT_LENGTH]; only those
    whose picture is right, a share `right` of the `count` that were drawn (rounded up to whole chunks).
    """

    def __init__(self, teacher: FluxPipeline, work: Path, *, count: int, seed: int, compile: bool) -> None:
        self.texts, self.vae, self.seed = flux.Texts(teacher), teacher.vae.to(DEVICE), seed
        denoiser = teacher.transformer.requires_grad_(False).to(DEVICE)
        self._field: flux.Field = torch.compile(denoiser, dynamic=False) if compile else denoiser
        chunks = range(-(-count // _CHUNK))
        held = [self._chunk(work / "paths" / f"{i:03d}.safetensors", i) for i in track(chunks, "paths")]
        self.states, self.ids = (torch.cat([chunk[name] for chunk in held]) for name in ("states", "ids"))
        self.right = len(self.ids) / (len(chunks) * _CHUNK)

    def _chunk(self, path: Path, i: int) -> dict[str, Tensor]:
        if path.exists():
            kept: dict[str, Tensor] = load_file(path)
            return kept
        rng = np.random.default_rng([self.seed, i])
        wanted = [captions.draw_request(rng, split="train") for _ in range(_CHUNK)]
        ids = components.ids([request.caption for request in wanted])
        states = self._walk(ids, generator(self.seed, "paths", i))
        shown = flux.pictures(self.vae, states[:, -1])
        right = torch.tensor([all(v.values()) for v in judge.verdicts(wanted, shown)])
        made = {"states": states[right].half(), "ids": ids[right]}
        write_bytes(path, save(made))
        return made

    @torch.no_grad()
    def _walk(self, ids: Tensor, source: torch.Generator) -> Tensor:
        """The guided states [B, STEPS + 1, tokens, channels] from seeded noise, by Euler's rule."""
        side = world.SIZE // 4
        x = torch.randn(len(ids), side * side, 4 * latents.CHANNELS, generator=source).to(DEVICE)
        text, states, at = self.texts.read(ids, components.TEXT_LENGTH), [x], levels().tolist()
        scale = torch.full((len(ids),), flux.DEFAULT_GUIDANCE, device=DEVICE)
        for (t, until), steps in zip(pairwise(at), TEACHER_STEPS, strict=True):
            for i in range(steps):
                now = torch.full_like(scale, t + (until - t) * i / steps)
                x = x + flux.velocity(self._field, text, x, now, scale) * ((until - t) / steps)
            states.append(x)
        return torch.stack(states, 1).cpu()


def train(
    pipeline: FluxPipeline,
    work: Path,
    *,
    paths: int,
    batch: int,
    seed: int,
    steps: int,
    rate: float,
    compile: bool,
    start: torch.nn.Module | None = None,
) -> FluxTransformer2DModel:
    """The student of the flux-dev `pipeline`, by `paths` of it; it begins as its teacher, or as `start`."""
    drawn = Paths(pipeline, work, count=paths, seed=seed, compile=compile)
    print(f"{drawn.right:.3f} of the teacher's pictures are right; {len(drawn.ids)} paths to learn from", flush=True)
    model = without_guidance(pipeline.transformer, flux.DEFAULT_GUIDANCE).requires_grad_(True).train()
    if start is not None:
        model.load_state_dict(start.state_dict())
    field: flux.Field = torch.compile(model, dynamic=False) if compile else model
    at = levels()

    def loss(step: int) -> Tensor:
        source = generator(seed, "schnell", step)
        long = step % flux.LONG_EVERY == flux.LONG_EVERY - 1
        size, length = (batch // 8, flux.LONG_TEXT) if long else (batch, components.TEXT_LENGTH)
        rows = torch.randint(len(drawn.ids), (size,), generator=source)
        place = torch.multinomial(torch.tensor(_DRAWN), size, replacement=True, generator=source)
        x, after = (drawn.states[rows, place + i].float().to(DEVICE) for i in (0, 1))
        t, until = at[place].to(DEVICE), at[place + 1].to(DEVICE)
        target = (x - after) / (t - until).view(-1, 1, 1)
        return (flux.velocity(field, drawn.texts.read(drawn.ids[rows], length), x, t, None) - target).square().mean()

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
