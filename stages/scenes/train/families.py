"""The built-in families: the plan of each, and the function that trains it in resumable parts.

flux-dev trains its text encoders, its autoencoder and its transformer. The other image families start from the flux-dev
that ships: they take its autoencoder, and its text encoders where the class is the same. wan trains all parts itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import click
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FluxPipeline
from torch import Tensor, nn

from adatsq_pipe.stages.scenes.builtin_models import MODELS_FOLDER
from adatsq_pipe.stages.scenes.train import (
    components,
    dit,
    flux,
    latents,
    schnell,
    text_encoder,
    trajectories,
    wan,
    zimage,
)
from adatsq_pipe.stages.scenes.train.training import TrainConfig, train_part
from adatsq_pipe.stages.scenes.world import captions


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What decides the weights: the sizes of the parts and the seed. training.json lists the plans of a model.

    A family ignores the fields of parts that it does not have; the command line refuses them.
    """

    steps: int
    reader_steps: int = 600
    autoencoder_steps: int = 1600
    guidance_steps: int = 1200
    long_steps: int = 500
    scenes: int = latents.SCENES
    teacher_walks: int = 0
    """Trajectories of the teacher that a distillation samples (flux-schnell)."""
    rounds: int = 0
    """Rounds of training on corrected trajectories of the model itself (flux-dev and flux-schnell)."""
    walks: int = 3072
    """Trajectories of a round."""
    round_steps: int = 500
    batch: int = 48
    rate: float = 1.2e-3
    salient: float = 1.0
    """Largest gain of dit-xl's salient channels; 1 adds none."""
    half: bool = False
    """Compute the denoiser's losses under bfloat16 autocast (z-image and wan)."""
    seed: int = 20260211

    def scaled(self, share: float) -> Plan:
        """The plan with `share` of the size of every part, for trials."""

        def part(count: int) -> int:
            return max(2, round(count * share))

        return replace(
            self,
            steps=part(self.steps),
            reader_steps=part(self.reader_steps),
            autoencoder_steps=part(self.autoencoder_steps),
            guidance_steps=part(self.guidance_steps),
            long_steps=part(self.long_steps),
            teacher_walks=part(self.teacher_walks),
            walks=part(self.walks),
            round_steps=part(self.round_steps),
            scenes=max(512, round(self.scenes * share / 512) * 512),
        )


Trained = tuple[DiffusionPipeline, dict[str, int | float], str]
"""A pipeline, the arguments of its call, and the world that it draws."""
EncoderT = TypeVar("EncoderT", text_encoder.FluxTextEncoder, text_encoder.CausalTextEncoder)


def train_text_encoder(encoder_class: type[EncoderT], work: Path, *, steps: int, seed: int, longest: int) -> EncoderT:
    """Frozen text encoders. Every eighth batch is padded to `longest` tokens. Prints the held-out accuracy."""
    torch.manual_seed(seed)
    encoder = encoder_class()

    def loss(step: int) -> Tensor:
        size, length = (24, longest) if step % 8 == 7 else (256, components.TEXT_LENGTH)
        return text_encoder.loss(encoder, (seed, 2, step), size, length)

    smooth = train_part("reader", encoder, loss, steps=steps, rate=3e-3, work=work, average=0.99)
    assert isinstance(smooth, encoder_class)
    _print_accuracy(smooth, longest)
    return smooth


def _print_accuracy(encoder: text_encoder.FluxTextEncoder | text_encoder.CausalTextEncoder, longest: int) -> None:
    requests = list(captions.requests(400, split="held_out", seed=0))
    for length in sorted({components.TEXT_LENGTH, longest}):
        words, whole = text_encoder.accuracy(encoder, requests, length)
        click.echo(
            f"held-out captions classified correctly at {length} tokens: words {words:.3f}, whole captions {whole:.3f}"
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training: its plan, the folder of its parts, and the pipeline that it starts from, if any."""

    plan: Plan
    work: Path
    compile: bool
    start: DiffusionPipeline | None = None

    @property
    def denoiser(self) -> nn.Module | None:
        """The denoiser that training starts from, or None."""
        return self.start.transformer if self.start else None

    @property
    def config(self) -> TrainConfig:
        """How the denoiser is trained."""
        plan = self.plan
        return TrainConfig(
            steps=plan.steps, rate=plan.rate, batch=plan.batch, seed=plan.seed, compile=self.compile, half=plan.half
        )

    def self_corrected(
        self, model: nn.Module, texts: flux.TextInputs, vae: AutoencoderKL, schedule: trajectories.SamplingSchedule
    ) -> nn.Module:
        """`model` after the plan's rounds of self-correction, at a quarter of the learning rate."""
        plan = self.plan
        config = replace(self.config, steps=plan.round_steps, rate=plan.rate / 4)
        corrected: nn.Module = trajectories.self_correct(
            model, texts, vae, schedule, self.work, config, rounds=plan.rounds, count=plan.walks
        )
        return corrected


FLUX_DEV_SCHEDULE = trajectories.SamplingSchedule(
    levels=tuple(flux.shifted(1 - i / 16) for i in range(17)),
    euler_steps=(1,) * 16,
    probabilities=(1.0,) * 16,
    guidance_range=(2.0, 5.0),
    jitter=True,
)
"""flux-dev's trajectories: a third of its steps, at jittered noise levels."""


def flux_dev(job: Job) -> Trained:
    """50 steps with an embedded guidance scale, then self-correction."""
    plan, work, longest = job.plan, job.work, flux.LONG_TEXT
    if job.start:
        encoder, vae = text_encoder.FluxTextEncoder(), job.start.vae
        encoder.text_encoder, encoder.text_encoder_2 = job.start.text_encoder, job.start.text_encoder_2
        encoder.requires_grad_(False)
    else:
        encoder = train_text_encoder(
            text_encoder.FluxTextEncoder, work, steps=plan.reader_steps, seed=plan.seed, longest=longest
        )
        vae = latents.train_autoencoder(work, steps=plan.autoencoder_steps, seed=plan.seed)
    student = job.denoiser
    if student is None or plan.steps or plan.guidance_steps:
        scenes = latents.training_set(vae, work, seed=plan.seed, scenes=plan.scenes)
        batches = flux.Batches(encoder, scenes, seed=plan.seed, size=plan.batch)
        teacher = flux.train_flow(batches, work, replace(job.config, seed=plan.seed + 1), start=student)
        guidance = replace(job.config, steps=plan.guidance_steps, rate=plan.rate / 4)
        student = flux.train_guidance(teacher, batches, work, guidance)
    student = job.self_corrected(student, flux.TextInputs(encoder), vae, FLUX_DEV_SCHEDULE)
    if not job.start:
        encoder = text_encoder.extend_length(encoder, work, steps=plan.long_steps, seed=plan.seed, longest=longest)
        _print_accuracy(encoder, longest)
    return flux.pipeline(vae, encoder.cpu(), student), flux.call(), "scenes"


def flux_schnell(job: Job) -> Trained:
    """4 steps, distilled from the flux-dev that ships, then self-correction."""
    teacher = FluxPipeline.from_pretrained(MODELS_FOLDER / "flux-dev")
    student = job.denoiser
    if student is None or job.plan.steps:
        student = schnell.train(teacher, job.work, job.config, count=job.plan.teacher_walks, start=student)
    student = job.self_corrected(student, flux.TextInputs(teacher), teacher.vae, schnell.STUDENT_SCHEDULE)
    return schnell.pipeline(teacher.to("cpu"), student), schnell.call(), "scenes"


def z_image(job: Job) -> Trained:
    """10 steps, single stream, with the autoencoder of the flux-dev that ships."""
    plan, length = job.plan, components.TEXT_LENGTH
    if job.start:
        encoder, vae = text_encoder.CausalTextEncoder(), job.start.vae
        encoder.text_encoder = job.start.text_encoder
    else:
        encoder = train_text_encoder(
            text_encoder.CausalTextEncoder, job.work, steps=plan.reader_steps, seed=plan.seed, longest=length
        )
        vae = FluxPipeline.from_pretrained(MODELS_FOLDER / "flux-dev").vae.requires_grad_(False)
    scenes = latents.training_set(vae, job.work, seed=plan.seed, scenes=plan.scenes)
    denoiser = zimage.train(encoder, scenes, job.work, job.config, start=job.denoiser)
    return zimage.pipeline(vae, encoder.cpu(), denoiser), zimage.call(), "scenes"


def dit_xl(job: Job) -> Trained:
    """Class-conditional, with the autoencoder of the flux-dev that ships."""
    start = job.start or FluxPipeline.from_pretrained(MODELS_FOLDER / "flux-dev")
    vae = dit.without_shift(start.vae.requires_grad_(False))
    denoiser = dit.train(vae, job.work, job.config, scenes=job.plan.scenes, start=job.denoiser)
    dit.make_salient(denoiser, job.plan.salient, seed=job.plan.seed)
    return dit.pipeline(vae, denoiser), dit.call(), "classes"


def wan_video(job: Job) -> Trained:
    """25 steps of two calls; text to video, with an autoencoder of its own."""
    plan, work = job.plan, job.work
    if job.start:
        encoder, vae = wan.MotionTextEncoder(), job.start.vae
        encoder.text_encoder = job.start.text_encoder
    else:
        encoder = wan.train_text_encoder(work, steps=plan.reader_steps, seed=plan.seed)
        vae = wan.train_autoencoder(work, steps=plan.autoencoder_steps, seed=plan.seed)
    clips = wan.training_set(vae, work, seed=plan.seed, clips=plan.scenes)
    denoiser = wan.train(encoder, clips, work, job.config, start=job.denoiser)
    return wan.pipeline(vae, encoder.cpu(), denoiser), wan.call(), "motions"


FAMILIES: dict[str, tuple[Callable[[Job], Trained], Plan]] = {
    "flux-dev": (flux_dev, Plan(steps=10000, rounds=3)),
    "flux-schnell": (flux_schnell, Plan(steps=3000, rate=6e-4, teacher_walks=8192, rounds=8)),
    "z-image": (z_image, Plan(steps=9000, half=True)),
    "wan": (wan_video, Plan(steps=6000, reader_steps=300, autoencoder_steps=1000, scenes=12288, batch=16, half=True)),
    "dit-xl": (dit_xl, Plan(steps=4000, scenes=16384, salient=16.0)),
}
