"""Every tiny pipeline of the zoo through the whole run: done, or refused and why. `python -m tests.bench.zoo`

Some are given pictures with their prompts, by a manifest. Done means: the run ended, its folder loads with plain
`from_pretrained`, and what it draws is what the model in memory draws that holds the solved weights and follows the
searched policy (the largest difference is shown), at the mean bits that the policy says.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import shutil
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from diffusers import DiffusionPipeline, DiTPipeline
from PIL import Image

from adatsq_pipe.pipeline import config, plan
from adatsq_pipe.pipeline.commands import cli
from adatsq_pipe.pipeline.request import read_request
from adatsq_pipe.stages import runtime
from adatsq_pipe.stages.architecture.families._family import timestep_name
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.settings import ComputeSettings, ModelSettings
from adatsq_pipe.stages.denoiser.conditions import Conditions, collated
from adatsq_pipe.stages.denoiser.denoiser import Denoiser
from adatsq_pipe.stages.denoiser.pipeline_call import pictures_of
from adatsq_pipe.stages.runtime.policy_hook import attach_policy_hook
from adatsq_pipe.storage.rundir import RunDir
from tests.zoo import ALONE, BUILDERS, GIVEN

SMALL = (
    "recipe.conditioning_group=0", "evaluate.seeds=1", "capture.rows=16", "capture.block=8",
    "search.rollout_prompts=1", "search.width=1",
)  # fmt: skip
PROMPTS = ("data.prompts=['a red circle', 'a blue square']", "data.batch=2", "evaluate.prompts=['a white cross']")
LABELS = ("data.prompts=['1', '2']", "data.batch=2", "evaluate.prompts=['4']")
OWN = {"z-image-omni-shown": ("compute.dtype=bfloat16",)}
"""What single ones need besides."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a pipeline fared. `refused` is the line that was said; `traceback` is a defect of ours."""

    name: str
    pipeline: str
    seconds: float
    layers: int = 0
    inspected: int = 0
    """Layers that `inspect` said would be quantized."""
    difference: float = float("nan")
    bits: tuple[float, float] = (0.0, 0.0)
    """Mean activation bits of the policy, and those that the held-out draws ran at."""
    refused: str = ""
    traceback: str = ""


def build(name: str, folder: Path) -> tuple[str, tuple[str, ...]]:
    """Write the tiny pipeline to `folder`; returns the name of its class and what says its prompts."""
    images: dict[str, int] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name in GIVEN:
            pipe, call, images = GIVEN[name]()
        else:
            pipe, call = BUILDERS[name]()
    pipe.save_pretrained(folder)
    if "num_inference_steps" in inspect.signature(pipe.__call__).parameters:
        call = {**call, "num_inference_steps": 2}
    (folder / "sampling.json").write_text(json.dumps({"call": call}))
    if not images:
        return type(pipe).__name__, LABELS if isinstance(pipe, DiTPipeline) else PROMPTS
    size = tuple(int(str(call.get(side, 16))) for side in ("height", "width"))
    files = {table: manifest(folder.parent / table, images, size, name) for table in ("data", "evaluate")}
    return type(pipe).__name__, tuple(f"{table}.prompts_file={path}" for table, path in files.items())


def manifest(folder: Path, images: dict[str, int], size: tuple[int, ...], name: str) -> Path:
    """Two prompts with pictures of noise (of masks the upper half): of each argument so many, 0 being one by itself."""
    folder.mkdir()
    rows = []
    for i, prompt in enumerate(("a red circle", "a blue square")):
        said: dict[str, Any] = {}
        for argument, count in images.items():
            said[argument] = [f"{argument}-{i}-{j}.png" for j in range(max(count, 1))]
            for j, file in enumerate(said[argument]):
                noise = np.random.default_rng([i, j]).integers(0, 255, (*size, 3), dtype=np.uint8)
                if "mask" in argument:
                    noise[:] = 255 * (np.arange(size[0]) < size[0] // 2).reshape(-1, 1, 1)
                Image.fromarray(noise).save(folder / file)
            said[argument] = said[argument] if count else said[argument][0]
        wanted = json.dumps({"edit_instruction": prompt}) if name == "bria-fibo-edit" else prompt
        rows.append({"prompt": wanted, "images": said, "seed": 5 + i})
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def try_one(name: str, below: Path) -> Outcome:
    """Build the pipeline of that name in the folder `below` and take it through the whole run."""
    start, model, run = time.perf_counter(), below / "model", below / "run"
    try:
        pipeline, prompts = build(name, model)
    except (ImportError, NameError) as lacking:
        return Outcome(name=name, pipeline="", seconds=0.0, refused=f"cannot be made here: {lacking}")
    said = io.StringIO()
    sets = [*SMALL, *prompts, *OWN.get(name, ()), *(("data.batch=1",) if name in ALONE else ())]
    arguments = ["run", "--run-dir", str(run), "--model", str(model), "--executor", "inline"]
    try:
        told = _inspected(model, [each for each in (*prompts, *OWN.get(name, ())) if not each.startswith("evaluate.")])
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = _main([*arguments, *(word for each in sets for word in ("--set", each))])
    except Exception:
        return Outcome(
            name=name, pipeline=pipeline, seconds=time.perf_counter() - start, traceback=traceback.format_exc()
        )
    if code:
        line = said.getvalue().strip().splitlines()[-1].removeprefix("error: ").replace(f"{model}: ", "")
        line = line.replace(str(model), "the folder")
        return Outcome(name=name, pipeline=pipeline, seconds=time.perf_counter() - start, refused=line)
    context, summary = _context(run), json.loads((run / "report" / "summary.json").read_text())
    loaded, wanted = drawn_by_folder(run / "model", context), drawn_in_memory(context)
    return Outcome(
        name=name,
        pipeline=pipeline,
        seconds=time.perf_counter() - start,
        inspected=told,
        layers=summary["size"]["layers"],
        bits=(summary["bits"]["activations_mean"], summary["bits"]["activations_run"]),
        difference=float((loaded.float() - wanted.float()).abs().max()),
    )


def _inspected(model: Path, prompts: list[str]) -> int:
    """How many linears `inspect` says would be quantized; none where it refuses, which `run` then has to do too."""
    said, ignored = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(ignored):
        code = _main(["inspect", str(model), "--json", *(word for each in prompts for word in ("--set", each))])
    if code:
        return 0
    return sum(group["count"] for one in json.loads(said.getvalue())["denoisers"] for group in one["groups"])


def _main(arguments: list[str]) -> int:
    """The command line, in this process; its exit code."""
    try:
        cli.main(args=arguments, standalone_mode=False)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _context(run: Path) -> Context:
    place = RunDir(run.resolve())
    kept = read_request(run)
    return plan.plan(config.load(preset=None, file=None, sets=(), model=None, previous=kept), place)[1]


def _first_draw(context: Context) -> Conditions:
    from adatsq_pipe.stages.evaluation.sampling import draws

    return draws(context)[0]


def drawn_by_folder(folder: Path, context: Context) -> torch.Tensor:
    """What the quantized folder draws for the first held-out caption, opened as a user opens it."""
    pipe: Any = DiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, context.settings[ComputeSettings].dtype))
    pipe.set_progress_bar_config(disable=True)
    if type(pipe).__name__ == "AllegroPipeline":
        pipe.vae.enable_tiling()
    wanted, call = _first_draw(context), dict(context.settings[ModelSettings].call)
    given: dict[str, Any] = {**collated(wanted.inputs[:1]), "prompt": wanted.prompts[0]}
    if type(pipe).__name__ == "DiTPipeline":
        given = {"class_labels": [int(prompt) for prompt in wanted.prompts]}
    generator: Any = torch.Generator().manual_seed(wanted.seeds[0])
    with torch.random.fork_rng():
        torch.manual_seed(wanted.seeds[0])
        return pictures_of(pipe(**{**call, **given}, generator=generator, output_type="np"), len(wanted.prompts))


def drawn_in_memory(context: Context) -> torch.Tensor:
    """What the full-precision model draws once the solved weights are put into it and it follows the policy."""
    from adatsq_pipe.stages.allocation.front import policy_of
    from adatsq_pipe.stages.calibration.survey import survey_of
    from adatsq_pipe.stages.weights.solved import load_solved

    denoiser = Denoiser(
        str(context.model.path),
        dtype=context.settings[ComputeSettings].dtype,
        device="cpu",
        call=context.settings[ModelSettings].call,
    )
    load_solved(context, denoiser.transformer, policy_of(context))
    for part in denoiser.parts.values():
        attach_policy_hook(part, survey_of(context).timesteps, timestep_name(part))
    runtime.execute(denoiser.transformer, "simulate")
    drawn: torch.Tensor = denoiser.record(_first_draw(context), decode=True).pictures
    return drawn


def table(outcomes: list[Outcome]) -> str:
    """The outcomes in Markdown."""
    done = [o for o in outcomes if not o.refused and not o.traceback]
    lines = ["| pipeline | layers | bits said | bits run | difference | seconds |", "|---|---|---|---|---|---|"]
    for o in done:
        said, ran = o.bits
        figures = f"{o.layers} | {said:.3f} | {ran:.3f} | {o.difference:.1e} | {o.seconds:.0f}"
        lines.append(f"| {o.pipeline} ({o.name}) | {figures} |")
    others = [o for o in outcomes if o.refused or o.traceback]
    if others:
        lines += ["", "| not taken | why |", "|---|---|"]
        lines += [f"| {o.pipeline or '-'} ({o.name}) | {o.refused or o.traceback.splitlines()[-1]} |" for o in others]
    return "\n".join([*lines, "", f"{len(done)} done, {len(others)} not"])


@click.command()
@click.argument("names", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), help="Write the table there too.")
@click.option("--trace", is_flag=True, help="Show whole tracebacks.")
def main(names: tuple[str, ...], out: Path | None, trace: bool) -> None:
    torch.set_num_threads(1)
    outcomes = []
    for name in names or (*BUILDERS, *GIVEN):
        below = Path(tempfile.mkdtemp(prefix="zoo-"))
        try:
            outcomes.append(try_one(name, below))
        finally:
            shutil.rmtree(below)
        last = outcomes[-1]
        said = last.refused or (last.traceback if trace else "".join(last.traceback.strip().splitlines()[-1:]))
        bits = f"bits {last.bits[0]:.3f} said, {last.bits[1]:.3f} run"
        done = f"done, {last.layers} layers (inspect: {last.inspected}), {last.difference:.1e}, {bits}"
        click.echo(f"{name:18} {last.seconds:5.1f} s  {said or done}")
    text = table(outcomes)
    click.echo(text)
    if out:
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
