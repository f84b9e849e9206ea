"""Train a built-in pipeline: `python -m adatsq_pipe.stages.scenes.train flux-dev --out FOLDER`.

Two parts, each resumable from FOLDER/.work and seeded per step, so that a run killed anywhere ends the same way:

1. the autoencoder;
2. the transformer with its text encoders: flow matching on logit-normal times, then guidance distillation (the student
   learns the classifier-free-guided field of its own frozen average, Meng et al. 2210.03142), so that one call per step
   is enough.

The folder ends with bf16 weights, the loss curve and samples.
"""

from __future__ import annotations

import copy
import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from adatsq_pipe.stages.scenes import components, flux, world

LONG_TEXT = 512
"""Plain pipeline calls pad captions to 512 tokens; every LONG_EVERY-th batch is padded so, and smaller."""
LONG_EVERY = 16


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What makes the weights: sizes of the two parts and seeds. Changing a field starts a different model."""

    autoencoder_steps: int = 1600
    flow_steps: int = 9000
    guidance_steps: int = 900
    batch: int = 48
    rate: float = 1.2e-3
    average: float = 0.999
    seed: int = 20260211

    @property
    def transformer_steps(self) -> int:
        return self.flow_steps + self.guidance_steps


def guidance_weight(scale: Tensor) -> Tensor:
    """The classifier-free weight that an embedded guidance scale stands for; scale 1 is no guidance."""
    return 1 + (scale - 1) / 2.5


def _seed(*parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.SeedSequence(parts).generate_state(1)[0]))


def _save(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _load(path: Path) -> dict[str, Any] | None:
    return torch.load(path, weights_only=True) if path.exists() else None


def _steps(name: str, start: int, stop: int) -> Iterator[int]:
    columns = (TextColumn(name), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=stop, completed=start, loss="")
        for step in range(start, stop):
            yield step
            progress.update(task, completed=step + 1)
            if not progress.console.is_terminal and (step + 1) % 200 == 0:
                print(f"{name} {step + 1}/{stop}", flush=True)


class Curve:
    """Mean loss of every 100 steps, as rows of a CSV file; a resumed run goes on where its checkpoint was."""

    def __init__(self, path: Path, rows: list[list[float]]) -> None:
        self.path, self.rows, self.recent = path, rows, list[float]()

    def add(self, step: int, loss: float) -> None:
        self.recent.append(loss)
        if (step + 1) % 100 == 0:
            self.rows.append([step + 1, round(sum(self.recent) / len(self.recent), 6)])
            self.recent = []
            with self.path.open("w", newline="") as file:
                csv.writer(file).writerows([["step", "loss"], *self.rows])


def train_autoencoder(plan: Plan, work: Path, every: int) -> AutoencoderKL:
    torch.manual_seed(plan.seed)
    vae = components.autoencoder(flux.LATENT_CHANNELS)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=plan.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2 * plan.rate, total_steps=plan.autoencoder_steps + 1)
    path, start, curve = work / "autoencoder.pt", 0, Curve(work / "autoencoder_loss.csv", [])
    if saved := _load(path):
        vae.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        start, curve.rows = saved["step"], saved["rows"]
    for step in _steps("autoencoder", start, plan.autoencoder_steps):
        _, picture = world.batch((plan.seed, 1, step), plan.batch // 2)
        posterior = vae.encode(picture).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=_seed(plan.seed, 2, step))
        restored = vae.decode(posterior.mean + posterior.std * noise).sample
        loss = (restored - picture).square().mean() + 1e-5 * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        curve.add(step, loss.item())
        if (step + 1) % every == 0 or step + 1 == plan.autoencoder_steps:
            state = {"model": vae.state_dict(), "optimizer": optimizer.state_dict()}
            _save(path, {**state, "schedule": schedule.state_dict(), "step": step + 1, "rows": curve.rows})
    return _with_latent_statistics(vae.eval().requires_grad_(False), plan)


@torch.no_grad()
def _with_latent_statistics(vae: AutoencoderKL, plan: Plan) -> AutoencoderKL:
    latents = vae.encode(world.batch((plan.seed, 3), 512)[1]).latent_dist.mean
    vae.register_to_config(
        scaling_factor=round(1 / latents.std().item(), 4), shift_factor=round(latents.mean().item(), 4)
    )
    return vae


class FluxTraining:
    """The transformer's part: model, average, teacher and optimiser, with one `step` and a resumable state."""

    def __init__(self, plan: Plan, vae: AutoencoderKL) -> None:
        torch.manual_seed(plan.seed + 1)
        self.plan, self.vae = plan, vae
        self.words = components.tokenizer()
        self.model = flux.FluxDenoiser()
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.teacher: flux.FluxDenoiser | None = None
        self._schedule(1.0, plan.flow_steps)

    def _schedule(self, peak: float, steps: int) -> None:
        """A new optimizer: warm-up, cosine from `peak` to 5 % of it over `steps`, then that low rate."""

        def rate(step: int) -> float:
            warm = 300
            if step < warm:
                return peak * (step + 1) / warm
            return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min((step - warm) / (steps - warm), 1.0))))

        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.plan.rate, weight_decay=0.01, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)

    def compile(self) -> None:
        """Compile the training forward; kept out of the modules, so that the state keeps its names."""
        compiled = torch.compile(self.model.transformer, dynamic=False)
        self.model.call = lambda **inputs: compiled(**inputs)

    def _ids(self, captions: list[str], length: int) -> Tensor:
        return torch.tensor(self.words(captions, padding="max_length", max_length=length).input_ids)

    def step(self, index: int) -> float:
        plan, distil = self.plan, index >= self.plan.flow_steps
        if distil and self.teacher is None:
            self.teacher = copy.deepcopy(self.average)
        long = index % LONG_EVERY == LONG_EVERY - 1
        size, length = (plan.batch // 8, LONG_TEXT) if long else (plan.batch, components.TEXT_LENGTH)
        captions, picture = world.batch((plan.seed, 4, index), size)
        noise_from = _seed(plan.seed, 5, index)
        with torch.no_grad():
            posterior = self.vae.encode(picture).latent_dist
            clean = flux.pack((posterior.mean - self.vae.config.shift_factor) * self.vae.config.scaling_factor)
            noise = torch.randn(clean.shape, generator=noise_from)
            t = torch.sigmoid(torch.randn(size, generator=noise_from) + 0.3)
            scale = 1 + 5 * torch.rand(size, generator=noise_from) if distil else torch.ones(size)
            dropped = torch.rand(size, generator=noise_from) < (0.0 if distil else 0.1)
            x = torch.lerp(clean, noise, t.view(-1, 1, 1))
            if not distil:
                captions = ["" if drop else c for c, drop in zip(captions, dropped.tolist(), strict=True)]
            pooled_ids, ids = self._ids(captions, components.TEXT_LENGTH), self._ids(captions, length)
            target = noise - clean
            if distil:
                target = self._guided(captions, x, t, scale)
        with torch.autocast("cpu", torch.bfloat16):
            velocity = self.model(pooled_ids, ids, x, t, scale)
        loss = (velocity.float() - target).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        keep = min(plan.average, (index + 1) / (index + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - keep)
        return float(loss.item())

    def _guided(self, captions: list[str], x: Tensor, t: Tensor, scale: Tensor) -> Tensor:
        assert self.teacher is not None
        size, length = len(captions), components.TEXT_LENGTH
        ids = self._ids(captions + [""] * size, length)
        both = self.teacher(ids, ids, x.repeat(2, 1, 1), t.repeat(2), torch.ones(2 * size))
        with_text, without = both.chunk(2)
        guided: Tensor = without + guidance_weight(scale).view(-1, 1, 1) * (with_text - without)
        return guided

    def state(self) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "model": self.model,
            "average": self.average,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
        }
        if self.teacher is not None:
            parts["teacher"] = self.teacher
        return {name: part.state_dict() for name, part in parts.items()}

    def load(self, state: dict[str, Any]) -> None:
        if "teacher" in state:
            self.teacher = copy.deepcopy(self.average)
            self.teacher.load_state_dict(state["teacher"])
        for name in ("model", "average", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])


@click.command()
@click.argument("family", type=click.Choice(["flux-dev"]))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the pipeline.")
@click.option("--flow-steps", default=Plan.flow_steps, show_default=True)
@click.option("--guidance-steps", default=Plan.guidance_steps, show_default=True)
@click.option("--autoencoder-steps", default=Plan.autoencoder_steps, show_default=True)
@click.option("--every", default=250, show_default=True, help="Steps between checkpoints.")
@click.option("--compile/--eager", default=True, show_default=True)
def main(
    family: str,
    out: Path,
    flow_steps: int,
    guidance_steps: int,
    autoencoder_steps: int,
    every: int,
    compile: bool,
) -> None:
    """Train the built-in pipeline FAMILY from nothing and write it to --out. Run again to go on."""
    plan = Plan(
        flow_steps=flow_steps,
        guidance_steps=guidance_steps,
        autoencoder_steps=autoencoder_steps,
    )
    work = out / ".work"
    work.mkdir(parents=True, exist_ok=True)
    vae = train_autoencoder(plan, work, every)
    training, path, start = FluxTraining(plan, vae), work / "transformer.pt", 0
    curve = Curve(out / "loss.csv", [])
    if saved := _load(path):
        training.load(saved["training"])
        start, curve.rows = saved["step"], saved["rows"]
    if compile:
        training.compile()
    for step in _steps("transformer", start, plan.transformer_steps):
        curve.add(step, training.step(step))
        if (step + 1) % every == 0 or step + 1 == plan.transformer_steps:
            _save(path, {"training": training.state(), "step": step + 1, "rows": curve.rows})
    training.average.call = training.average.transformer.__call__
    flux.export(vae, training.average, out)
    flux.grid(FluxPipeline.from_pretrained(out), out / "samples.png", steps=50)
    click.echo(f"{out}: trained for {plan.transformer_steps} steps; samples.png shows held-out captions")


if __name__ == "__main__":
    main()
