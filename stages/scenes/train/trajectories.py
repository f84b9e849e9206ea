"""A model's walks from noise to picture for training captions, bent so that each ends at a right picture.

What a walk shows at its end is read, and the nearest right scene (correction.py) takes its place; the walk's states
x(t) become y(t) = x(t) + (1 - t) (end - x(0)), which begins at the same noise. A model that learns the straight lines
between a walk's states (progressive distillation, Salimans & Ho 2202.00512) keeps what was right and unlearns what was
wrong. The bending is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from rich.progress import track
from safetensors.torch import load_file, save
from torch import Tensor

from adatsq_pipe.stages.scenes.train import components, correction, flux, latents
from adatsq_pipe.stages.scenes.train.training import DEVICE, Lessons, generator, train_part
from adatsq_pipe.stages.scenes.world import captions, detector, rendering, scorer
from adatsq_pipe.storage.files import write_bytes

CHUNK = 128


@dataclass(frozen=True, kw_only=True)
class Route:
    """The noise levels [K + 1] whose states are kept, 1 to 0, and how they are reached and learned."""

    levels: tuple[float, ...]
    within: tuple[int, ...]
    """Euler steps between two levels, K of them."""
    often: tuple[float, ...]
    """How often training draws each of the K steps."""
    scales: tuple[float, float] | None = None
    """Guidance scales, lowest and highest, for a model that is told one; each walk has its own."""
    jitter: bool = False
    """Each chunk's inner levels are drawn, for a model of any levels: each at most nine tenths of the way from its own
    to the one above, since states are kept in fp16 and a line between two that almost touch is mostly rounding."""

    def drawn(self, source: torch.Generator) -> Tensor:
        """A chunk's levels [K + 1]."""
        at = torch.tensor(self.levels)
        if self.jitter:
            at[1:-1] += 0.9 * torch.rand(1, generator=source) * (at[:-2] - at[1:-1])
        return at


class Walks:
    """Bent walks of a model, in chunks that are kept and seeded.

    `states` fp16 [N, K + 1, tokens, channels] at `levels` [N, K + 1], `ids` [N, TEXT_LENGTH], `scales` [N] (NaN where
    the model is told none); `right` is the share of the `count` walks (rounded up to whole chunks) whose end was right
    before it was corrected.
    """

    def __init__(
        self,
        field: flux.Field,
        texts: flux.Texts,
        vae: AutoencoderKL,
        route: Route,
        work: Path,
        *,
        count: int,
        seed: int,
    ) -> None:
        self.route, self._field, self._texts, self._vae, self._seed = route, field, texts, vae.to(DEVICE), seed
        chunks = range(-(-count // CHUNK))
        held = [self._chunk(work / f"{i:03d}.safetensors", i) for i in track(chunks, work.name)]
        joined = {name: torch.cat([chunk[name] for chunk in held]) for name in held[0]}
        self.states, self.levels, self.ids, self.scales = (joined[n] for n in ("states", "levels", "ids", "scales"))
        self.right = joined["right"].float().mean().item()

    def _chunk(self, path: Path, i: int) -> dict[str, Tensor]:
        if path.exists():
            kept: dict[str, Tensor] = load_file(path)
            return kept
        rng = np.random.default_rng([self._seed, i])
        wanted = [captions.draw_request(rng, split="train") for _ in range(CHUNK)]
        ids = components.ids([request.caption for request in wanted])
        source = generator(self._seed, "walks", i)
        levels, (low, high) = self.route.drawn(source), self.route.scales or (math.nan, math.nan)
        scales = low + (high - low) * torch.rand(CHUNK, generator=source)
        states = self._walk(ids, levels, scales, source)
        found = detector.detect(flux.pictures(self._vae, states[:, -1]))
        right = [scorer.is_correct(*each) for each in zip(wanted, found, strict=True)]
        scenes = [correction.nearest(*each, rng) for each in zip(wanted, found, strict=True)]
        error = flux.pack(latents.encoded(self._vae, rendering.render(scenes))).cpu() - states[:, -1]
        states = states + (1 - levels).view(1, -1, 1, 1) * error.unsqueeze(1)
        made = {"states": states.half(), "levels": levels.expand(CHUNK, -1).contiguous(), "ids": ids}
        made |= {"scales": scales, "right": torch.tensor(right)}
        write_bytes(path, save(made))
        return made

    @torch.no_grad()
    def _walk(self, ids: Tensor, levels: Tensor, scales: Tensor, source: torch.Generator) -> Tensor:
        """States [B, K + 1, tokens, channels] from seeded noise, by Euler's rule."""
        x = torch.randn(len(ids), rendering.SIZE**2 // 16, 4 * latents.CHANNELS, generator=source).to(DEVICE)
        text, states = self._texts.read(ids, components.TEXT_LENGTH), [x]
        scale = scales.to(DEVICE) if self.route.scales else None
        for (t, until), steps in zip(pairwise(levels.tolist()), self.route.within, strict=True):
            for i in range(steps):
                now = torch.full((len(ids),), t + (until - t) * i / steps, device=DEVICE)
                x = x + flux.velocity(self._field, text, x, now, scale) * ((until - t) / steps)
            states.append(x)
        return torch.stack(states, 1).cpu()


def learn(
    name: str,
    model: FluxTransformer2DModel,
    walks: Walks,
    texts: flux.Texts,
    work: Path,
    how: Lessons,
) -> FluxTransformer2DModel:
    """The running average of `model` after `how.steps` of learning the lines between states of `walks`."""
    field: flux.Field = how.compiled(model)
    told = model.config.guidance_embeds
    often = torch.tensor(walks.route.often)

    def loss(step: int) -> Tensor:
        source = generator(how.seed, name, step)
        long = step % flux.LONG_EVERY == flux.LONG_EVERY - 1
        size, length = (how.batch // 8, flux.LONG_TEXT) if long else (how.batch, components.TEXT_LENGTH)
        rows = torch.randint(len(walks.ids), (size,), generator=source)
        place = torch.multinomial(often, size, replacement=True, generator=source)
        x, after = (walks.states[rows, place + i].float().to(DEVICE) for i in (0, 1))
        t, until = (walks.levels[rows, place + i].to(DEVICE) for i in (0, 1))
        target = (x - after) / (t - until).view(-1, 1, 1)
        scale = walks.scales[rows].to(DEVICE) if told else None
        got = flux.velocity(field, texts.read(walks.ids[rows], length), x, t, scale)
        return (got - target).square().mean()

    smooth = train_part(name, model, loss, steps=how.steps, rate=how.rate, work=work, average=0.998)
    assert isinstance(smooth, FluxTransformer2DModel)
    return smooth


def correct(
    model: FluxTransformer2DModel,
    texts: flux.Texts,
    vae: AutoencoderKL,
    route: Route,
    work: Path,
    how: Lessons,
    *,
    rounds: int,
    count: int,
) -> FluxTransformer2DModel:
    """`model` after `rounds` of `how.steps` on `count` bent walks of its own, drawn anew for each round."""
    for i in range(rounds):
        name, its = f"round_{i}", replace(how, seed=how.seed + 1000 * (i + 1))
        field = model.requires_grad_(False).to(DEVICE)
        walks = Walks(field, texts, vae, route, work / name, count=count, seed=its.seed)
        print(f"{walks.right:.3f} of its own pictures are right", flush=True)
        model = learn(name, model.requires_grad_(True).train(), walks, texts, work, its)
    return model
