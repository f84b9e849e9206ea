"""Train a built-in pipeline: `python -m adatsq_pipe.stages.scenes.train flux-dev --out FOLDER`.

In parts, each resumable from FOLDER/.work and seeded. flux-dev: the text encoders, the autoencoder, the training set in
its latents, the transformer, guidance distillation. The other families take over what flux-dev has learned: its
autoencoder, and its text encoders where they are the same. The folder ends with bf16 weights, loss curves and samples.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import click
import numpy as np
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from torch import Tensor

from adatsq_pipe.stages.scenes import captions as grammar
from adatsq_pipe.stages.scenes import components, dit, flux, language, latents, schnell, wan, worlds, zimage
from adatsq_pipe.stages.scenes.shelf import SHELF
from adatsq_pipe.stages.scenes.training import train_part


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What makes the weights: sizes of the parts and the seed. Changing a field starts a different model."""

    steps: int
    reader_steps: int = 600
    autoencoder_steps: int = 1600
    guidance_steps: int = 1200
    long_steps: int = 500
    scenes: int = latents.SCENES
    batch: int = 48
    rate: float = 1.2e-3
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
            scenes=max(512, round(self.scenes * share / 512) * 512),
        )


ReaderT = TypeVar("ReaderT", language.Reader, language.CausalReader)


def train_reader(kind: type[ReaderT], work: Path, *, steps: int, seed: int, longest: int) -> ReaderT:
    """Text encoders, frozen; every eighth batch is padded to `longest`. Says how well they read unseen captions."""
    torch.manual_seed(seed)
    reader = kind()

    def loss(step: int) -> Tensor:
        size, length = (24, longest) if step % 8 == 7 else (256, components.TEXT_LENGTH)
        return language.loss(reader, (seed, 2, step), size, length)

    smooth = train_part("reader", reader, loss, steps=steps, rate=3e-3, work=work, average=0.99)
    assert isinstance(smooth, kind)
    _say_how_it_reads(smooth, longest)
    return smooth


def _say_how_it_reads(reader: language.Reader | language.CausalReader, longest: int) -> None:
    asked = list(grammar.requests(400, split="held_out", seed=0))
    for length in sorted({components.TEXT_LENGTH, longest}):
        words, whole = language.accuracy(reader, asked, length)
        click.echo(f"held-out captions read right at {length} tokens: words {words:.3f}, whole captions {whole:.3f}")


def flux_dev(plan: Plan, out: Path, work: Path, compile: bool) -> None:
    """50 steps with an embedded guidance scale."""
    reader = train_reader(language.Reader, work, steps=plan.reader_steps, seed=plan.seed, longest=flux.LONG_TEXT)
    vae = latents.train_autoencoder(work, steps=plan.autoencoder_steps, seed=plan.seed)
    scenes = latents.training_set(vae, work, seed=plan.seed, scenes=plan.scenes)
    batches = flux.Batches(reader, scenes, seed=plan.seed, size=plan.batch)
    teacher = flux.train_flow(batches, work, steps=plan.steps, rate=plan.rate, seed=plan.seed + 1, compile=compile)
    student = flux.train_guidance(
        teacher, batches, work, steps=plan.guidance_steps, rate=plan.rate / 4, compile=compile
    )
    reader = language.lengthen(reader, work, steps=plan.long_steps, seed=plan.seed, longest=flux.LONG_TEXT)
    _say_how_it_reads(reader, flux.LONG_TEXT)
    export(flux.pipeline(vae, reader, student), flux.call(), out, world="scenes")


def flux_schnell(plan: Plan, out: Path, work: Path, compile: bool) -> None:
    """4 steps, distilled from the flux-dev that ships."""
    teacher = FluxPipeline.from_pretrained(SHELF / "flux-dev")
    scenes = latents.training_set(teacher.vae, work, seed=plan.seed, scenes=plan.scenes)
    batches = flux.Batches(teacher, scenes, seed=plan.seed, size=plan.batch)
    student = schnell.train(teacher, batches, work, steps=plan.steps, rate=plan.rate, compile=compile)
    export(schnell.pipeline(teacher, student), schnell.call(), out, world="scenes")


def z_image(plan: Plan, out: Path, work: Path, compile: bool) -> None:
    """10 steps, single stream, on the autoencoder of the flux-dev that ships."""
    length = components.TEXT_LENGTH
    reader = train_reader(language.CausalReader, work, steps=plan.reader_steps, seed=plan.seed, longest=length)
    vae = FluxPipeline.from_pretrained(SHELF / "flux-dev").vae.requires_grad_(False)
    scenes = latents.training_set(vae, work, seed=plan.seed, scenes=plan.scenes)
    sizes = {"steps": plan.steps, "batch": plan.batch, "seed": plan.seed}
    denoiser = zimage.train(reader, scenes, work, rate=plan.rate, compile=compile, **sizes)
    export(zimage.pipeline(vae, reader, denoiser), zimage.call(), out, world="scenes")


def dit_xl(plan: Plan, out: Path, work: Path, compile: bool) -> None:
    """Class-conditional, on the autoencoder of the flux-dev that ships."""
    vae = dit.unshifted(FluxPipeline.from_pretrained(SHELF / "flux-dev").vae.requires_grad_(False))
    denoiser = dit.train(vae, work, steps=plan.steps, rate=plan.rate, batch=plan.batch, seed=plan.seed, compile=compile)
    export(dit.pipeline(vae, denoiser), dit.call(), out, world="classes")


def wan_video(plan: Plan, out: Path, work: Path, compile: bool) -> None:
    """25 steps of two calls; text to video, with an autoencoder of its own."""
    reader = wan.train_reader(work, steps=plan.reader_steps, seed=plan.seed)
    vae = wan.train_autoencoder(work, steps=plan.autoencoder_steps, seed=plan.seed)
    clips = wan.training_set(vae, work, seed=plan.seed, clips=plan.scenes)
    sizes = {"steps": plan.steps, "batch": plan.batch, "seed": plan.seed}
    denoiser = wan.train(reader, clips, work, rate=plan.rate, compile=compile, **sizes)
    export(wan.pipeline(vae, reader, denoiser), wan.call(), out, world="motions")


FAMILIES: dict[str, tuple[Callable[[Plan, Path, Path, bool], None], Plan]] = {
    "flux-dev": (flux_dev, Plan(steps=10000)),
    "flux-schnell": (flux_schnell, Plan(steps=1600, rate=6e-4, scenes=16384)),
    "z-image": (z_image, Plan(steps=4000)),
    "wan": (wan_video, Plan(steps=4000, reader_steps=300, autoencoder_steps=1200, scenes=12288)),
    "dit-xl": (dit_xl, Plan(steps=4000)),
}


def export(pipeline: DiffusionPipeline, call: dict[str, int | float], out: Path, *, world: str) -> None:
    """Write the pipeline folder: the transformer and the autoencoder in bf16.

    The text encoders stay fp32: transformers loads what is stored, diffusers loads fp32 unless told otherwise, and a
    plain `from_pretrained` must give one dtype throughout.
    """
    pipeline.transformer.to(torch.bfloat16)
    pipeline.vae.to(torch.bfloat16, memory_format=torch.contiguous_format)
    pipeline.save_pretrained(out)
    (out / "sampling.json").write_text(json.dumps({"call": call, "world": world}, indent=1) + "\n")


def grid(folder: Path) -> None:
    """samples.png beside the weights: 32 held-out captions (or the classes), drawn in one call."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    said = json.loads((folder / "sampling.json").read_text())
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    call = {**said["call"], "generator": torch.Generator().manual_seed(0), "output_type": "np"}
    if said["world"] == "classes":
        asked = [" ".join(thing) for thing in grammar.CLASSES]
        pictures = pipeline(class_labels=list(range(len(asked))), **call)[0]
    else:
        asked = list(worlds.prompts(32, world=said["world"], split="held_out", seed=0))
        pictures = pipeline(asked, **call)[0]
    figure, axes = plt.subplots(-(-len(asked) // 8), 8, figsize=(12, 1.65 * -(-len(asked) // 8)))
    for axis, picture, caption in zip(axes.flat, np.asarray(pictures), asked, strict=True):
        axis.imshow(picture if picture.ndim == 3 else np.concatenate(picture[:: len(picture) - 1], 1))
        axis.set_title(caption.replace(" left", "\nleft").replace(" right", "\nright"), fontsize=6)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(folder / "samples.png", dpi=80)


@click.command()
@click.argument("family", type=click.Choice(list(FAMILIES)))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the pipeline.")
@click.option("--share", default=1.0, show_default=True, help="Share of the planned steps, for a trial.")
@click.option("--compile/--eager", default=True, show_default=True)
def main(family: str, out: Path, share: float, compile: bool) -> None:
    """Train the built-in pipeline FAMILY and write it to --out. Run again to go on."""
    train, plan = FAMILIES[family]
    work = out / ".work"
    work.mkdir(parents=True, exist_ok=True)
    train(plan.scaled(share) if share != 1 else plan, out, work, compile)
    for curve in sorted(work.glob("*_loss.csv")):
        shutil.copyfile(curve, out / curve.name)
    grid(out)
    click.echo(f"{out}: trained; samples.png shows held-out captions")


if __name__ == "__main__":
    main()
