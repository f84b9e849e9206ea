"""Sampling trajectories of a model for training captions, corrected so that each ends at a correct picture.

The picture at a trajectory's end is scored, and the nearest correct scene (correction.py) takes its place: the states
x(t) become y(t) = x(t) + (1 - t) (corrected end - x(0)), which starts at the same noise. A model that learns the
straight lines between a trajectory's states (progressive distillation, Salimans & Ho 2202.00512) keeps what was correct
and unlearns what was wrong. The correction is ours.
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
from adatsq_pipe.stages.scenes.train.training import DEVICE, TrainConfig, generator, train_part
from adatsq_pipe.stages.scenes.world import captions, detector, rendering, scorer
from adatsq_pipe.storage.files import write_bytes

CHUNK = 128


@dataclass(frozen=True, kw_only=True)
class SamplingSchedule:
    """K + 1 noise levels from 1 to 0, how a trajectory reaches them, and how often each of the K steps is trained."""

    levels: tuple[float, ...]
    euler_steps: tuple[int, ...]
    """Euler steps between two levels, K of them."""
    probabilities: tuple[float, ...]
    """How often training draws each of the K steps."""
    guidance_range: tuple[float, float] | None = None
    """Lowest and highest guidance scale, for a model with a guidance embedding; each trajectory draws its own."""
    jitter: bool = False
    """Draw the inner levels of each chunk, for a model that takes any level. Each moves at most nine tenths of the way
    to the level above: states are stored in fp16, and a line between two that almost touch is mostly rounding."""

    def draw_levels(self, source: torch.Generator) -> Tensor:
        """The levels `[K + 1]` of one chunk."""
        levels = torch.tensor(self.levels)
        if self.jitter:
            levels[1:-1] += 0.9 * torch.rand(1, generator=source) * (levels[:-2] - levels[1:-1])
        return levels


class Trajectories:
    """Corrected trajectories of a model, sampled in seeded chunks that are cached in `work`.

    `states` fp16 [N, K + 1, tokens, channels] at `levels` [N, K + 1], `ids` [N, TEXT_LENGTH], `scales` [N] (NaN for a
    model without guidance embedding). N is `count` rounded up to whole chunks, and `right` is the share of them whose
    end was correct before the correction.
    """

    def __init__(
        self,
        denoiser: flux.Denoiser,
        texts: flux.TextInputs,
        vae: AutoencoderKL,
        schedule: SamplingSchedule,
        work: Path,
        *,
        count: int,
        seed: int,
    ) -> None:
        self.schedule, self._denoiser, self._texts, self._seed = schedule, denoiser, texts, seed
        self._vae = vae.to(DEVICE)
        chunks = range(-(-count // CHUNK))
        parts = [self._chunk(work / f"{i:03d}.safetensors", i) for i in track(chunks, work.name)]
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self.states, self.levels, self.ids, self.scales = (joined[n] for n in ("states", "levels", "ids", "scales"))
        self.right = joined["right"].float().mean().item()

    def _chunk(self, path: Path, i: int) -> dict[str, Tensor]:
        if path.exists():
            cached: dict[str, Tensor] = load_file(path)
            return cached
        rng = np.random.default_rng([self._seed, i])
        requests = [captions.draw_request(rng, split="train") for _ in range(CHUNK)]
        ids = components.ids([request.caption for request in requests])
        source = generator(self._seed, "walks", i)
        levels = self.schedule.draw_levels(source)
        low, high = self.schedule.guidance_range or (math.nan, math.nan)
        scales = low + (high - low) * torch.rand(CHUNK, generator=source)
        states = self._sample(ids, levels, scales, source)
        detections = detector.detect(flux.pictures(self._vae, states[:, -1]))
        right = [scorer.is_correct(*pair) for pair in zip(requests, detections, strict=True)]
        scenes = [correction.nearest(*pair, rng) for pair in zip(requests, detections, strict=True)]
        ends = flux.pack(latents.encoded(self._vae, rendering.render(scenes))).cpu()
        states = corrected(states, levels, ends)
        tensors = {"states": states.half(), "levels": levels.expand(CHUNK, -1).contiguous(), "ids": ids}
        tensors |= {"scales": scales, "right": torch.tensor(right)}
        write_bytes(path, save(tensors))
        return tensors

    @torch.no_grad()
    def _sample(self, ids: Tensor, levels: Tensor, scales: Tensor, source: torch.Generator) -> Tensor:
        """States [B, K + 1, tokens, channels] from seeded noise, by Euler's rule."""
        x = torch.randn(len(ids), rendering.SIZE**2 // 16, 4 * latents.CHANNELS, generator=source).to(DEVICE)
        text, states = self._texts.encode(ids, components.TEXT_LENGTH), [x]
        scale = scales.to(DEVICE) if self.schedule.guidance_range else None
        for (t, until), steps in zip(pairwise(levels.tolist()), self.schedule.euler_steps, strict=True):
            for i in range(steps):
                now = torch.full((len(ids),), t + (until - t) * i / steps, device=DEVICE)
                x = x + flux.velocity(self._denoiser, text, x, now, scale) * ((until - t) / steps)
            states.append(x)
        return torch.stack(states, 1).cpu()


def corrected(states_BKNC: Tensor, levels_K: Tensor, ends_BNC: Tensor) -> Tensor:
    """The trajectories moved so that they end at `ends_BNC`; the noise at level 1 stays."""
    error = ends_BNC - states_BKNC[:, -1]
    return states_BKNC + (1 - levels_K).view(1, -1, 1, 1) * error.unsqueeze(1)


def train_on(
    name: str,
    model: FluxTransformer2DModel,
    paths: Trajectories,
    texts: flux.TextInputs,
    work: Path,
    config: TrainConfig,
) -> FluxTransformer2DModel:
    """The running average of `model` after `config.steps` steps of learning the lines between the states of `paths`."""
    denoiser: flux.Denoiser = config.compiled(model)
    guided = model.config.guidance_embeds
    probabilities = torch.tensor(paths.schedule.probabilities)

    def loss(step: int) -> Tensor:
        source = generator(config.seed, name, step)
        long = step % flux.LONG_EVERY == flux.LONG_EVERY - 1
        size, length = (config.batch // 8, flux.LONG_TEXT) if long else (config.batch, components.TEXT_LENGTH)
        rows = torch.randint(len(paths.ids), (size,), generator=source)
        place = torch.multinomial(probabilities, size, replacement=True, generator=source)
        x, after = (paths.states[rows, place + i].float().to(DEVICE) for i in (0, 1))
        t, until = (paths.levels[rows, place + i].to(DEVICE) for i in (0, 1))
        target = (x - after) / (t - until).view(-1, 1, 1)
        scale = paths.scales[rows].to(DEVICE) if guided else None
        velocity = flux.velocity(denoiser, texts.encode(paths.ids[rows], length), x, t, scale)
        return (velocity - target).square().mean()

    smooth = train_part(name, model, loss, steps=config.steps, rate=config.rate, work=work, average=0.998)
    assert isinstance(smooth, FluxTransformer2DModel)
    return smooth


def self_correct(
    model: FluxTransformer2DModel,
    texts: flux.TextInputs,
    vae: AutoencoderKL,
    schedule: SamplingSchedule,
    work: Path,
    config: TrainConfig,
    *,
    rounds: int,
    count: int,
) -> FluxTransformer2DModel:
    """`model` after `rounds` rounds, each of `config.steps` steps on `count` corrected trajectories of the model."""
    for i in range(rounds):
        name, config_of_round = f"round_{i}", replace(config, seed=config.seed + 1000 * (i + 1))
        frozen = model.requires_grad_(False).to(DEVICE)
        paths = Trajectories(frozen, texts, vae, schedule, work / name, count=count, seed=config_of_round.seed)
        print(f"{paths.right:.3f} of its own pictures are correct", flush=True)
        model = train_on(name, model.requires_grad_(True).train(), paths, texts, work, config_of_round)
    return model
