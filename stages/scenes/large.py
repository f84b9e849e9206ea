"""scenes/flux-dev at the size that its pipeline draws when told none: 128 latents a side, 4,096 tokens.

The model that knows scenes of 64 tokens learns the same scenes drawn two, four and eight times as large, by flow
matching; then guidance is distilled at the last size (flux.py). A picture of n tokens hides its scene the longer the
more tokens there are, so times move towards noise by log sqrt(n) (Esser et al. 2403.03206, sec. 5.3.2). What it knew
stays: some steps also learn the field of the model that it began as, on scenes of 64 tokens.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from rich.progress import track
from torch import Tensor

from adatsq_pipe.stages.scenes import components, flux, latents, world
from adatsq_pipe.stages.scenes.training import DEVICE, Lessons, generator, train_part

SIZE = 256
"""Pixels a side of a plain call's pictures."""
RISE = ((0.12, 64, 384), (0.25, 128, 96), (0.63, SIZE, 24))
"""Shares of the steps, the size that they draw, and the samples of one."""
GUIDED = (SIZE, 16)
KEPT, KEPT_EVERY = 30.0, 3
"""Weight of what it knew, and of how many steps one learns it."""
SPREAD = 1.3
"""Deviation of the logits of times."""
LONG = 3
"""Of so many batches at the last size one has short captions; a plain call pads them to 512 tokens."""
_CHUNK = 256


class Scenes:
    """The same training scenes at several sizes, in latents: fp16 [N, tokens, channels] on DEVICE."""

    def __init__(self, vae: AutoencoderKL, *, seed: int, count: int) -> None:
        sizes = (world.SIZE, *(size for _, size, _ in RISE))
        found: dict[int, list[Tensor]] = {size: [] for size in sizes}
        ids, vae = [], vae.to(DEVICE)
        for chunk in track(range(count // _CHUNK), "scenes"):
            captions, placed = world.scenes((seed, 6, chunk), _CHUNK)
            ids.append(components.ids(captions))
            for size in sizes:
                for start in range(0, _CHUNK, 64):
                    picture = world.render(placed[start : start + 64], size=size, device=DEVICE)
                    found[size].append(flux.pack(latents.encoded(vae, picture)).half())
        self.clean = {size: torch.cat(parts) for size, parts in found.items()}
        self.ids = torch.cat(ids)

    def batch(self, source: torch.Generator, size: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Token ids, clean latents, noise and times of `count` scenes."""
        rows = torch.randint(len(self.ids), (count,), generator=source)
        clean = self.clean[size][rows.to(DEVICE)].float()
        seeded = torch.Generator(DEVICE).manual_seed(int(torch.randint(2**62, (1,), generator=source)))
        noise = torch.randn(clean.shape, generator=seeded, device=DEVICE)
        shift = flux.TIME_SHIFT + math.log(size / world.SIZE)
        t = torch.sigmoid(SPREAD * torch.randn(count, generator=source) + shift)
        return self.ids[rows], clean, noise, t.to(DEVICE)


class Kept:
    """The field of the model before, on scenes of 64 tokens at any guidance."""

    def __init__(self, model: FluxTransformer2DModel, scenes: Scenes, texts: flux.Texts) -> None:
        self.before = copy.deepcopy(model).requires_grad_(False).eval().to(DEVICE)
        self.scenes, self.texts = scenes, texts

    def loss(self, model: torch.nn.Module, source: torch.Generator, step: int, count: int) -> Tensor:
        """Mean squared difference of the fields, weighted; nothing at most steps."""
        if step % KEPT_EVERY:
            return torch.zeros((), device=DEVICE)
        long = step // KEPT_EVERY % flux.LONG_EVERY == flux.LONG_EVERY - 1
        count, length = (max(1, count // 8), flux.LONG_TEXT) if long else (count, components.TEXT_LENGTH)
        ids, clean, noise, t = self.scenes.batch(source, world.SIZE, count)
        text = self.texts.read(ids, length)
        scale = 1 + 5 * torch.rand(count, generator=source).to(DEVICE)
        x = torch.lerp(clean, noise, t.view(-1, 1, 1))
        with torch.no_grad():
            wanted = flux.velocity(self.before, text, x, t, scale)
        return KEPT * (flux.velocity(model, text, x, t, scale) - wanted).float().square().mean()


def train(
    model: FluxTransformer2DModel, texts: flux.Texts, vae: AutoencoderKL, work: Path, how: Lessons, *, scenes: int
) -> FluxTransformer2DModel:
    """`model` after `how.steps` of larger and larger scenes and a fifth as many of guidance."""
    held = Scenes(vae, seed=how.seed, count=scenes)
    kept = Kept(model, held, texts)
    model = model.requires_grad_(True).train()

    def rise(step: int) -> Tensor:
        source, size, count = generator(how.seed, "large", step), *_size_at(step / how.steps)
        ids, clean, noise, t = held.batch(source, size, count)
        dropped = torch.rand(count, generator=source) < 0.1
        text = texts.read(torch.where(dropped[:, None], texts.empty, ids), _length(step, size))
        x = torch.lerp(clean, noise, t.view(-1, 1, 1))
        error = flux.velocity(model, text, x, t, torch.ones_like(t)) - (noise - clean)
        return error.float().square().mean() + kept.loss(model, source, step, how.batch)

    risen = train_part(
        "large", model, rise, steps=how.steps, rate=how.rate, work=work, average=0.998, half=how.half
    ).to(DEVICE)
    student = copy.deepcopy(risen).requires_grad_(True).train()

    def guided(step: int) -> Tensor:
        source, (size, count) = generator(how.seed, "large_guidance", step), GUIDED
        ids, clean, noise, t = held.batch(source, size, count)
        scale = 1 + 5 * torch.rand(count, generator=source).to(DEVICE)
        x = torch.lerp(clean, noise, t.view(-1, 1, 1))
        with torch.no_grad():
            asked = texts.read(torch.cat([ids, texts.empty.expand_as(ids)]), components.TEXT_LENGTH)
            both = flux.velocity(risen, asked, x.repeat(2, 1, 1), t.repeat(2), torch.ones_like(t).repeat(2))
            with_text, without = both.float().chunk(2)
            target = without + flux.guidance_weight(scale).view(-1, 1, 1) * (with_text - without)
        error = flux.velocity(student, texts.read(ids, _length(step, size)), x, t, scale) - target
        return error.float().square().mean() + kept.loss(student, source, step, how.batch)

    told = replace(how, steps=how.steps // 5, rate=how.rate / 2)
    smooth = train_part(
        "large_guidance", student, guided, steps=told.steps, rate=told.rate, work=work, average=0.99, half=how.half
    )
    assert isinstance(smooth, FluxTransformer2DModel)
    return smooth


def _size_at(share: float) -> tuple[int, int]:
    """Pixels a side, and samples, after `share` of the steps."""
    for part, size, count in RISE:
        if share < part:
            return size, count
        share -= part
    return RISE[-1][1:]


def _length(step: int, size: int) -> int:
    """Tokens that a batch's captions are padded to."""
    long = size == SIZE and step % LONG != LONG - 1
    return flux.LONG_TEXT if long else components.TEXT_LENGTH
