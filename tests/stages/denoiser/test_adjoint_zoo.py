"""Every tiny pipeline of the zoo: a gradient of its final latents reaches its layers, or what stands in the way."""

from __future__ import annotations

import functools
import json
import sys
import tempfile
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from adatsq_pipe.stages.architecture.layers import quantizable_linears
from adatsq_pipe.stages.base.errors import NotTaken
from adatsq_pipe.stages.denoiser.adjoint import Crossing, obstacle, sweep
from adatsq_pipe.stages.denoiser.call import Trajectory
from adatsq_pipe.stages.denoiser.conditions import Conditions, arguments_of, picture_mode
from adatsq_pipe.stages.denoiser.denoiser import Denoiser
from adatsq_pipe.stages.denoiser.outputs import leaves, rebuild, structure
from tests.bench import zoo
from tests.zoo import BUILDERS, GIVEN, refused

pytestmark = [pytest.mark.extended, pytest.mark.filterwarnings("ignore")]

NAMES = [name for name in (*BUILDERS, *GIVEN) if name not in refused.BUILDERS]
OBSTACLES = {"kandinsky5-image": "modified by an inplace operation"}
"""Kandinsky writes the first frame's mean and deviation into the latents that it has taken them from."""
NOT_TAKEN = {"omnigen": "OmniGenMultiModalProcessor", "z-image-controlnet": "layers of its denoiser itself"}


@dataclass(frozen=True, kw_only=True)
class Fate:
    """How a pipeline fared; `pipeline` is the name of its class."""

    pipeline: str = ""
    refused: str = ""
    obstacle: str = ""
    crossings: int = 0
    silent: frozenset[int] = frozenset()
    """Steps at which no layer has a gradient."""
    moved: frozenset[int] = frozenset()
    """Silent steps whose recorded outputs do move the final latents when they are changed."""


@functools.cache
def fate(name: str) -> Fate:
    with tempfile.TemporaryDirectory() as below:
        folder = Path(below)
        try:
            pipeline, _ = zoo.build(name, folder / "model")
        except (ImportError, NameError) as error:
            return Fate(refused=f"cannot be made here: {error}")
        try:
            denoiser = _opened(name, folder)
        except NotTaken as error:
            return Fate(pipeline=pipeline, refused=str(error))
        return _swept(pipeline, denoiser, _conditions(name, pipeline, folder))


def _opened(name: str, folder: Path) -> Denoiser:
    call = json.loads((folder / "model" / "sampling.json").read_text())["call"]
    dtype = "bfloat16" if name == "z-image-omni-shown" else "float32"
    denoiser = Denoiser(str(folder / "model"), dtype=dtype, device="cpu", call=call)
    module = sys.modules[type(denoiser.pipe).__module__]
    if not hasattr(module, "ftfy"):  # an optional package that repairs broken text
        module.__dict__["ftfy"] = types.SimpleNamespace(fix_text=lambda text: text)
    return denoiser


def _conditions(name: str, pipeline: str, folder: Path) -> Conditions:
    if name not in GIVEN:
        return Conditions(prompts=("1" if pipeline == "DiTPipeline" else "a red circle",), seeds=(5,))
    data = folder / "data"
    row = json.loads((data / "manifest.jsonl").read_text().splitlines()[0])
    inputs = arguments_of(lambda file: data / file, row, picture_mode(folder / "model"))
    return Conditions(prompts=(row["prompt"],), seeds=(5,), inputs=(inputs,))


def _swept(pipeline: str, denoiser: Denoiser, conditions: Conditions) -> Fate:
    run = denoiser.record(conditions)
    if why := obstacle(denoiser, conditions, run):
        return Fate(pipeline=pipeline, obstacle=why)
    again = denoiser.differentiable(conditions, lambda j, call: run.outputs[j])
    assert torch.equal(again, run.latents), "the loop with its graph leads to the same latents"
    felt, crossings = set[int](), 0

    def see(crossing: Crossing) -> None:
        nonlocal crossings
        crossings += 1
        assert crossing.output_gradient.isfinite().all() and crossing.input_gradient.isfinite().all(), crossing.layer
        if crossing.output_gradient.any():
            felt.add(crossing.call.step)

    direction = torch.randn(run.latents.shape, generator=torch.Generator().manual_seed(3))
    sweep(denoiser, conditions, run, direction, quantizable_linears(denoiser.transformer), see)
    assert torch.equal(denoiser.replay(conditions, run.outputs)[0], run.latents), "replay is bit-exact after a sweep"
    silent = frozenset(run.steps) - felt
    moved = frozenset(step for step in silent if _moves(denoiser, conditions, run, step))
    return Fate(pipeline=pipeline, crossings=crossings, silent=silent, moved=moved)


def _moves(denoiser: Denoiser, conditions: Conditions, run: Trajectory, step: int) -> bool:
    """Whether other outputs at a step lead to other final latents."""
    other = [
        rebuild(structure(out), iter([1.5 * leaf + 0.1 for leaf in leaves(out)])) if at == step else out
        for out, at in zip(run.outputs, run.steps, strict=True)
    ]
    return not torch.equal(denoiser.replay(conditions, other)[0], run.latents)


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_reaches_every_step_or_an_obstacle_is_named(name: str) -> None:
    found = fate(name)
    if name in NOT_TAKEN:
        assert NOT_TAKEN[name] in found.refused, found
    elif name in OBSTACLES:
        assert OBSTACLES[name] in found.obstacle, found
    else:
        assert not found.refused and not found.obstacle and found.crossings > 5, found
        assert not found.moved, f"no gradient at steps {sorted(found.moved)}, which move the final latents"


def test_most_pipelines_are_differentiable() -> None:
    fates = {name: fate(name) for name in NAMES}
    through = {one.pipeline for one in fates.values() if one.crossings and not one.silent}
    print(len(through), "kinds of pipeline")
    assert len(through) >= 70, fates
