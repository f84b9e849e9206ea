"""Train a built-in pipeline: `python -m adatsq_pipe.stages.scenes.train flux-dev --out FOLDER`.

In parts, each resumable from FOLDER/.work and seeded. flux-dev: the text encoders, the autoencoder, the training set in
its latents, the transformer, guidance distillation. The other families take over what flux-dev has learned: its
autoencoder, and its text encoders where they are the same. `--start FOLDER` goes on from weights that are there. The
folder ends with bf16 weights, loss curves, the plans that made them (training.json) and samples.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FluxPipeline
from torch import Tensor

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
from adatsq_pipe.stages.scenes.train.training import Lessons, make_deterministic, train_part
from adatsq_pipe.stages.scenes.world import captions as grammar
from adatsq_pipe.stages.scenes.world import prompts
from adatsq_pipe.storage.files import write_text


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What makes the weights: sizes of the parts and the seed. Changing a field starts a different model."""

    steps: int
    reader_steps: int = 600
    autoencoder_steps: int = 1600
    guidance_steps: int = 1200
    long_steps: int = 500
    scenes: int = latents.SCENES
    teacher_walks: int = 0
    """Walks from noise to picture that a distillation (flux-schnell) draws."""
    rounds: int = 0
    """Rounds of learning from its own walks, corrected (flux-dev and flux-schnell)."""
    walks: int = 3072
    round_steps: int = 500
    batch: int = 48
    rate: float = 1.2e-3
    salient: float = 1.0
    """How far the salient channels that dit-xl is given stand above the others; 1 gives it none."""
    half: bool = False
    """The denoiser's losses under bfloat16 autocast (z-image and wan): a quarter sooner on CPUs that multiply it."""
    seed: int = 20260211

    def scaled(self, share: float) -> Plan:
        """The plan with `share` of every part, for trials."""

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


Made = tuple[DiffusionPipeline, dict[str, int | float], str]
"""A pipeline, what its call needs to be told, and the world it draws."""
ReaderT = TypeVar("ReaderT", text_encoder.Reader, text_encoder.CausalReader)


def train_reader(kind: type[ReaderT], work: Path, *, steps: int, seed: int, longest: int) -> ReaderT:
    """Text encoders, frozen; every eighth batch is padded to `longest`. Says how well they read unseen captions."""
    torch.manual_seed(seed)
    reader = kind()

    def loss(step: int) -> Tensor:
        size, length = (24, longest) if step % 8 == 7 else (256, components.TEXT_LENGTH)
        return text_encoder.loss(reader, (seed, 2, step), size, length)

    smooth = train_part("reader", reader, loss, steps=steps, rate=3e-3, work=work, average=0.99)
    assert isinstance(smooth, kind)
    _say_how_it_reads(smooth, longest)
    return smooth


def _say_how_it_reads(reader: text_encoder.Reader | text_encoder.CausalReader, longest: int) -> None:
    asked = list(grammar.requests(400, split="held_out", seed=0))
    for length in sorted({components.TEXT_LENGTH, longest}):
        words, whole = text_encoder.accuracy(reader, asked, length)
        click.echo(f"held-out captions read right at {length} tokens: words {words:.3f}, whole captions {whole:.3f}")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training: its plan, where it keeps its parts, and the pipeline whose weights it begins with, if any."""

    plan: Plan
    work: Path
    compile: bool
    start: Any = None

    @property
    def denoiser(self) -> Any:
        """The weights it begins with, or None."""
        return self.start.transformer if self.start else None

    @property
    def how(self) -> Lessons:
        """How its denoiser is trained."""
        plan = self.plan
        return Lessons(
            steps=plan.steps, rate=plan.rate, batch=plan.batch, seed=plan.seed, compile=self.compile, half=plan.half
        )

    def corrected(self, model: Any, texts: flux.Texts, vae: AutoencoderKL, route: trajectories.Route) -> Any:
        """`model` after the plan's rounds on its own walks, at a quarter of the training's rate."""
        plan = self.plan
        how = replace(self.how, steps=plan.round_steps, rate=plan.rate / 4)
        return trajectories.correct(model, texts, vae, route, self.work, how, rounds=plan.rounds, count=plan.walks)


FLUX_DEV = trajectories.Route(
    levels=tuple(flux.shifted(1 - i / 16) for i in range(17)),
    within=(1,) * 16,
    often=(1.0,) * 16,
    scales=(2.0, 5.0),
    jitter=True,
)
"""flux-dev's own walk: a third of its steps, at any noise levels."""


def flux_dev(job: Job) -> Made:
    """50 steps with an embedded guidance scale; at last corrected on its own pictures."""
    plan, work, longest = job.plan, job.work, flux.LONG_TEXT
    if job.start:
        reader, vae = text_encoder.Reader(), job.start.vae
        reader.text_encoder, reader.text_encoder_2 = job.start.text_encoder, job.start.text_encoder_2
        reader.requires_grad_(False)
    else:
        reader = train_reader(text_encoder.Reader, work, steps=plan.reader_steps, seed=plan.seed, longest=longest)
        vae = latents.train_autoencoder(work, steps=plan.autoencoder_steps, seed=plan.seed)
    student = job.denoiser
    if student is None or plan.steps or plan.guidance_steps:
        scenes = latents.training_set(vae, work, seed=plan.seed, scenes=plan.scenes)
        batches = flux.Batches(reader, scenes, seed=plan.seed, size=plan.batch)
        teacher = flux.train_flow(batches, work, replace(job.how, seed=plan.seed + 1), start=student)
        told = replace(job.how, steps=plan.guidance_steps, rate=plan.rate / 4)
        student = flux.train_guidance(teacher, batches, work, told)
    student = job.corrected(student, flux.Texts(reader), vae, FLUX_DEV)
    if not job.start:
        reader = text_encoder.lengthen(reader, work, steps=plan.long_steps, seed=plan.seed, longest=longest)
        _say_how_it_reads(reader, longest)
    return flux.pipeline(vae, reader.cpu(), student), flux.call(), "scenes"


def flux_schnell(job: Job) -> Made:
    """4 steps, distilled from the flux-dev that ships, then corrected on its own pictures."""
    teacher = FluxPipeline.from_pretrained(MODELS_FOLDER / "flux-dev")
    student = job.denoiser
    if student is None or job.plan.steps:
        student = schnell.train(teacher, job.work, job.how, count=job.plan.teacher_walks, start=student)
    student = job.corrected(student, flux.Texts(teacher), teacher.vae, schnell.OWN)
    return schnell.pipeline(teacher.to("cpu"), student), schnell.call(), "scenes"


def z_image(job: Job) -> Made:
    """10 steps, single stream, on the autoencoder of the flux-dev that ships."""
    plan, length = job.plan, components.TEXT_LENGTH
    if job.start:
        reader, vae = text_encoder.CausalReader(), job.start.vae
        reader.text_encoder = job.start.text_encoder
    else:
        reader = train_reader(
            text_encoder.CausalReader, job.work, steps=plan.reader_steps, seed=plan.seed, longest=length
        )
        vae = FluxPipeline.from_pretrained(MODELS_FOLDER / "flux-dev").vae.requires_grad_(False)
    scenes = latents.training_set(vae, job.work, seed=plan.seed, scenes=plan.scenes)
    denoiser = zimage.train(reader, scenes, job.work, job.how, start=job.denoiser)
    return zimage.pipeline(vae, reader.cpu(), denoiser), zimage.call(), "scenes"


def dit_xl(job: Job) -> Made:
    """Class-conditional, on the autoencoder of the flux-dev that ships."""
    start = job.start or FluxPipeline.from_pretrained(MODELS_FOLDER / "flux-dev")
    vae = dit.unshifted(start.vae.requires_grad_(False))
    denoiser = dit.train(vae, job.work, job.how, scenes=job.plan.scenes, start=job.denoiser)
    dit.make_salient(denoiser, job.plan.salient, seed=job.plan.seed)
    return dit.pipeline(vae, denoiser), dit.call(), "classes"


def wan_video(job: Job) -> Made:
    """25 steps of two calls; text to video, with an autoencoder of its own."""
    plan, work = job.plan, job.work
    if job.start:
        reader, vae = wan.Reader(), job.start.vae
        reader.text_encoder = job.start.text_encoder
    else:
        reader = wan.train_reader(work, steps=plan.reader_steps, seed=plan.seed)
        vae = wan.train_autoencoder(work, steps=plan.autoencoder_steps, seed=plan.seed)
    clips = wan.training_set(vae, work, seed=plan.seed, clips=plan.scenes)
    denoiser = wan.train(reader, clips, work, job.how, start=job.denoiser)
    return wan.pipeline(vae, reader.cpu(), denoiser), wan.call(), "motions"


FAMILIES: dict[str, tuple[Callable[[Job], Made], Plan]] = {
    "flux-dev": (flux_dev, Plan(steps=10000, rounds=3)),
    "flux-schnell": (flux_schnell, Plan(steps=3000, rate=6e-4, teacher_walks=8192, rounds=8)),
    "z-image": (z_image, Plan(steps=9000, half=True)),
    "wan": (wan_video, Plan(steps=6000, reader_steps=300, autoencoder_steps=1000, scenes=12288, batch=16, half=True)),
    "dit-xl": (dit_xl, Plan(steps=4000, scenes=16384, salient=16.0)),
}


def export(pipeline: DiffusionPipeline, call: dict[str, int | float], out: Path, *, world: str) -> None:
    """Write the pipeline folder: the transformer and the autoencoder in bf16, and not where they were loaded from.

    The text encoders stay fp32: transformers loads what is stored, diffusers loads fp32 unless told otherwise, and a
    plain `from_pretrained` must give one dtype throughout.
    """
    pipeline.transformer.to(torch.bfloat16)
    pipeline.vae.to(torch.bfloat16, memory_format=torch.contiguous_format)
    for part in (pipeline.transformer, pipeline.vae):
        part.register_to_config(_name_or_path="")
    pipeline.save_pretrained(out)
    (out / "sampling.json").write_text(json.dumps({"call": call, "world": world}, indent=1) + "\n")


def grid(folder: Path, count: int) -> None:
    """samples.png beside the weights: `count` held-out captions (or classes), drawn in one call."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    said = json.loads((folder / "sampling.json").read_text())
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    call = {**said["call"], "generator": torch.Generator().manual_seed(0), "output_type": "np"}
    if said["world"] == "classes":
        asked = [" ".join(thing) for thing in grammar.CLASSES[:count]]
        pictures = pipeline(class_labels=list(range(len(asked))), **call)[0]
    else:
        asked = list(prompts.draw_prompts(count, world=said["world"], split="held_out", seed=0))
        pictures = pipeline(asked, **call)[0]
    rows = -(-len(asked) // 8)
    figure, axes = plt.subplots(rows, 8, figsize=(12, 1.65 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, caption in zip(axes.flat, np.asarray(pictures), asked, strict=False):
        axis.imshow(picture if picture.ndim == 3 else np.concatenate(picture[:: len(picture) - 1], 1))
        axis.set_title(caption.replace(" left", "\nleft").replace(" right", "\nright"), fontsize=6)
    figure.tight_layout()
    figure.savefig(folder / "samples.png", dpi=80)


def history(start: Path | None) -> list[dict[str, Any]]:
    """The plans that made the weights in `start`, first to last."""
    if start is None or not (start / "training.json").exists():
        return []
    return list(json.loads((start / "training.json").read_text()))


def keep_history(work: Path, out: Path, start: Path | None, plan: Plan) -> None:
    """Beside the weights: loss curves, and training.json, the plans that made them; going on from `start`'s own."""
    (out / "training.json").write_text(json.dumps([*history(start), asdict(plan)], indent=1) + "\n")
    for curve in sorted({path.name for path in [*work.glob("*_loss.csv"), *(start or work).glob("*_loss.csv")]}):
        rows: list[list[str]] = []
        for folder in [start, work] if start else [work]:
            if (folder / curve).exists():
                last = int(rows[-1][0]) if rows else 0
                with (folder / curve).open() as file:
                    rows += [[str(last + int(step)), loss] for step, loss in list(csv.reader(file))[1:]]
        with (out / curve).open("w", newline="") as file:
            csv.writer(file).writerows([["step", "loss"], *rows])


def _keep_plan(work: Path, plan: Plan) -> None:
    """Note the plan that the parts in `work` belong to. Raises UsageError if they belong to another one."""
    path, now = work / "plan.json", asdict(plan)
    if path.exists():
        was = json.loads(path.read_text())
        differing = [f"{key} {was.get(key)} (now {value})" for key, value in now.items() if was.get(key) != value]
        if differing:
            raise click.UsageError(f"{work} holds parts of another plan: {', '.join(differing)}; name another --out")
    write_text(path, json.dumps(now, indent=1) + "\n")


@click.command()
@click.argument("family", type=click.Choice(list(FAMILIES)))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the pipeline.")
@click.option("--start", type=click.Path(path_type=Path, exists=True), help="Go on from the weights in this folder.")
@click.option("--steps", type=int, help="Steps of the denoiser [default: the family's plan].")
@click.option("--guidance-steps", type=int, help="Steps of flux-dev's guidance distillation [default: the plan].")
@click.option("--rounds", type=int, help="Rounds of correction on its own pictures [default: the family's plan].")
@click.option("--round-steps", type=int, help="Steps of one of them [default: the family's plan].")
@click.option("--rate", type=float, help="Peak learning rate [default: the family's plan].")
@click.option("--batch", type=int, help="Samples of a step [default: the family's plan].")
@click.option("--salient", type=click.FloatRange(min=1), help="Gain of dit-xl's salient channels [default: the plan].")
@click.option("--share", default=1.0, show_default=True, help="Share of the planned steps, for a trial.")
@click.option("--samples", default=32, show_default=True, help="Prompts drawn in samples.png.")
@click.option("--compile/--eager", default=True, show_default=True)
def main(
    family: str,
    out: Path,
    start: Path | None,
    steps: int | None,
    guidance_steps: int | None,
    rounds: int | None,
    round_steps: int | None,
    rate: float | None,
    batch: int | None,
    salient: float | None,
    share: float,
    samples: int,
    compile: bool,
) -> None:
    """Train the built-in pipeline FAMILY and write it to --out. Run again to go on."""
    make_deterministic()
    train, plan = FAMILIES[family]
    made_by = history(start)
    plan = replace(plan, seed=plan.seed + len(made_by))
    if any(one.get("salient", 1) > 1 for one in made_by):
        plan = replace(plan, salient=1.0)
    given: dict[str, Any] = {"steps": steps, "guidance_steps": guidance_steps, "rate": rate, "batch": batch}
    given |= {"rounds": rounds, "round_steps": round_steps, "salient": salient}
    plan = replace(plan, **{field: value for field, value in given.items() if value is not None})
    plan = plan.scaled(share) if share != 1 else plan
    work = out / ".work"
    work.mkdir(parents=True, exist_ok=True)
    _keep_plan(work, plan)
    begun = DiffusionPipeline.from_pretrained(start) if start else None
    pipeline, call, world = train(Job(plan=plan, work=work, compile=compile, start=begun))
    export(pipeline, call, out, world=world)
    keep_history(work, out, start, plan)
    grid(out, samples)
    click.echo(f"{out}: trained; samples.png shows held-out captions")


if __name__ == "__main__":
    main()
