"""The trainer's command line, on plans of a few steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from adatsq_pipe.stages.scenes.train import latents, trajectories, wan
from adatsq_pipe.stages.scenes.train.__main__ import main
from adatsq_pipe.stages.scenes.train.families import FAMILIES, Plan

SMALL = {"reader_steps": 2, "autoencoder_steps": 2, "guidance_steps": 2, "long_steps": 2, "steps": 2, "round_steps": 2}


@pytest.fixture
def small_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans of two steps on 16 scenes."""
    for name, (train, plan) in FAMILIES.items():
        sizes = SMALL | {"scenes": 16, "teacher_walks": 16, "walks": 16, "rounds": min(plan.rounds, 1), "batch": 8}
        monkeypatch.setitem(FAMILIES, name, (train, replace(plan, **sizes)))
    monkeypatch.setattr(trajectories, "CHUNK", 16)
    monkeypatch.setattr(latents, "_CHUNK", 16)
    monkeypatch.setattr(wan, "_CHUNK", 16)


@pytest.mark.run
@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name in ("dit-xl", "z-image") else (pytest.mark.extended,)) for name in FAMILIES],
)
@pytest.mark.usefixtures("small_plans")
def test_a_trainer_makes_a_pipeline_and_continues_from_it(family: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for out, options in ((first, []), (second, ["--start", str(first)])):
        result = CliRunner().invoke(main, [family, "--eager", "--samples", "1", "--out", str(out), *options])
        assert result.exit_code == 0, (result.output, result.exception)
    plans = json.loads((second / "training.json").read_text())
    assert [plan["seed"] for plan in plans] == [plans[0]["seed"], plans[0]["seed"] + 1]
    assert plans[1]["salient"] == 1, "salient channels are added once"
    assert (second / "samples.png").exists() and (second / "sampling.json").exists()
    weights = [load_file(f / "transformer" / "diffusion_pytorch_model.safetensors") for f in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    assert {tensor.dtype for tensor in weights[0].values()} == {torch.bfloat16}
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_parts_of_another_plan_are_refused(tmp_path: Path) -> None:
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work" / "plan.json").write_text(json.dumps({"steps": 3000}))
    result = CliRunner().invoke(main, ["z-image", "--out", str(tmp_path)])
    assert result.exit_code == 2 and "steps 3000 (now 9000)" in result.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("family", "option"), [("flux-dev", "--salient"), ("wan", "--rounds"), ("flux-schnell", "--guidance-steps")]
)
def test_an_option_of_another_family_is_refused(family: str, option: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [family, "--out", str(tmp_path / "out"), option, "2"])
    assert result.exit_code == 2 and f"{option} has no effect on {family}" in result.output.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_a_share_scales_every_part_but_the_batch_and_the_rounds() -> None:
    plan = Plan(steps=1000, teacher_walks=64, rounds=3).scaled(0.25)
    assert (plan.steps, plan.reader_steps, plan.autoencoder_steps) == (250, 150, 400)
    assert (plan.guidance_steps, plan.long_steps, plan.round_steps) == (300, 125, 125)
    assert (plan.scenes, plan.teacher_walks, plan.walks) == (16384, 16, 768)
    assert (plan.batch, plan.rounds, plan.rate) == (48, 3, 1.2e-3)
    assert Plan(steps=1000).scaled(0.0001).steps == 2
