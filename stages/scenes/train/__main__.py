"""Train a built-in pipeline: `python -m adatsq_pipe.stages.scenes.train flux-dev --out FOLDER`.

The parts are seeded, and resume from FOLDER/.work. `--start FOLDER` continues from the weights in a folder. The result
is a pipeline folder with bf16 weights, loss curves, the plans of its trainings (training.json) and samples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from diffusers import DiffusionPipeline

from adatsq_pipe.stages.scenes.train.families import FAMILIES, Job, Plan
from adatsq_pipe.stages.scenes.train.pipeline_folder import draw_samples, export, plan_history, write_history
from adatsq_pipe.stages.scenes.train.training import make_deterministic
from adatsq_pipe.storage.files import read_json_object, write_text

ONLY_FOR = {
    "guidance_steps": ("flux-dev",),
    "rounds": ("flux-dev", "flux-schnell"),
    "round_steps": ("flux-dev", "flux-schnell"),
    "salient": ("dit-xl",),
}
"""Fields of a plan that only some families use."""


def _check_plan(work: Path, plan: Plan) -> None:
    """Record the plan of the parts in `work`. Raises UsageError if they belong to another plan."""
    path, now = work / "plan.json", asdict(plan)
    if path.exists():
        was = read_json_object(path)
        differing = [f"{key} {was.get(key)} (now {value})" for key, value in now.items() if was.get(key) != value]
        if differing:
            raise click.UsageError(f"{work} holds parts of another plan: {', '.join(differing)}; choose another --out")
    write_text(path, json.dumps(now, indent=1) + "\n")


def _check_options(family: str, options: Mapping[str, object]) -> None:
    """Raises UsageError for an option that has no effect on `family`."""
    for field in options:
        if family not in ONLY_FOR.get(field, FAMILIES):
            option = "--" + field.replace("_", "-")
            raise click.UsageError(f"{option} has no effect on {family}; it is for {' and '.join(ONLY_FOR[field])}")


@click.command()
@click.argument("family", type=click.Choice(list(FAMILIES)))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the pipeline.")
@click.option("--start", type=click.Path(path_type=Path, exists=True), help="Continue from the weights in this folder.")
@click.option("--steps", type=int, help="Training steps of the denoiser [default: the family's plan].")
@click.option("--guidance-steps", type=int, help="Steps of flux-dev's guidance distillation [default: the plan].")
@click.option(
    "--rounds", type=int, help="Rounds of self-correction (flux-dev, flux-schnell) [default: the family's plan]."
)
@click.option("--round-steps", type=int, help="Training steps of a round [default: the family's plan].")
@click.option("--rate", type=float, help="Peak learning rate [default: the family's plan].")
@click.option("--batch", type=int, help="Samples per step [default: the family's plan].")
@click.option(
    "--salient",
    type=click.FloatRange(min=1),
    help="Largest gain of dit-xl's salient channels; 1 adds none [default: the plan].",
)
@click.option("--share", default=1.0, show_default=True, help="Scale all parts of the plan by this share, for a trial.")
@click.option("--samples", default=32, show_default=True, help="Prompts in samples.png.")
@click.option("--compile/--eager", default=True, show_default=True, help="Compile the denoiser with torch.compile.")
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
    """Train the built-in pipeline FAMILY and write it to --out. Run the same command again to resume."""
    options: dict[str, Any] = {"steps": steps, "guidance_steps": guidance_steps, "rate": rate, "batch": batch}
    options |= {"rounds": rounds, "round_steps": round_steps, "salient": salient}
    options = {field: value for field, value in options.items() if value is not None}
    _check_options(family, options)
    make_deterministic()
    train, plan = FAMILIES[family]
    previous_plans = plan_history(start)
    plan = replace(plan, seed=plan.seed + len(previous_plans))
    if any(previous.get("salient", 1) > 1 for previous in previous_plans):
        plan = replace(plan, salient=1.0)
    plan = replace(plan, **options)
    plan = plan.scaled(share) if share != 1 else plan
    work = out / ".work"
    work.mkdir(parents=True, exist_ok=True)
    _check_plan(work, plan)
    start_pipeline = DiffusionPipeline.from_pretrained(start) if start else None
    pipeline, call, world = train(Job(plan=plan, work=work, compile=compile, start=start_pipeline))
    export(pipeline, call, out, world=world)
    write_history(work, out, start, plan)
    draw_samples(out, samples)
    click.echo(f"{out}: trained; samples.png shows held-out captions")


if __name__ == "__main__":
    main()
