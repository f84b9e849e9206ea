"""Training: a part that was killed and run again ends with the bytes of one left alone; what a part hands on holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import FluxPipeline
from safetensors.torch import load_file
from torch import Tensor, nn

from adatsq_pipe.stages.scenes.builtin_models import MODELS_FOLDER
from adatsq_pipe.stages.scenes.train import (
    components,
    dit,
    families,
    flux,
    schnell,
    text_encoder,
    trajectories,
)
from adatsq_pipe.stages.scenes.train.__main__ import main
from adatsq_pipe.stages.scenes.train.training import generator, rate_at, train_part
from adatsq_pipe.stages.scenes.world import captions, scorer


class Killed(Exception):
    pass


def _train(work: Path, *, kill_at: int = -1) -> Tensor:
    torch.manual_seed(3)
    model = nn.Linear(4, 2)

    def loss(step: int) -> Tensor:
        if step == kill_at:
            raise Killed
        x = torch.randn(8, 4, generator=generator(1, "x", step))
        error: Tensor = (model(x) - x[:, :2] * 2).square().mean()
        return error

    return train_part("part", model, loss, steps=230, rate=0.05, work=work, every=20).state_dict()["weight"]


def test_a_killed_part_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    wanted = _train(alone)
    for at in (3, 67, 140):
        with pytest.raises(Killed):
            _train(killed, kill_at=at)
    assert torch.equal(_train(killed), wanted)
    assert (killed / "part.safetensors").read_bytes() == (alone / "part.safetensors").read_bytes()
    assert (killed / "part_loss.csv").read_text() == (alone / "part_loss.csv").read_text()


def test_a_finished_part_is_only_loaded(tmp_path: Path) -> None:
    wanted = _train(tmp_path)
    assert torch.equal(_train(tmp_path, kill_at=0), wanted)


def test_it_learns(tmp_path: Path) -> None:
    _train(tmp_path)
    weight = load_file(tmp_path / "part.safetensors")["model.weight"]
    assert (weight - torch.tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0]])).abs().max() < 0.1


def test_the_rate_rises_and_falls() -> None:
    rates = [rate_at(step, 1000) for step in range(1000)]
    assert max(rates) == rates[200] == 1.0 and rates[0] < 0.01 and rates[-1] < 0.02


def test_questions_name_the_thing_each_word_belongs_to() -> None:
    wanted = captions.Request(task="", things=(("red", "circle"), ("", "square")), relation="left of")
    ids, of_word, of_all = text_encoder.labels([wanted], 12)
    assert ids.shape == (1, 12)
    assert of_word["colour"][0, :8].tolist() == [0, 0, 0, 0, 0, 6, 6, -100]
    assert of_word["place"][0, :7].tolist() == [2] * 5 + [3] * 2
    assert of_all["shape1"].item() == 1 and of_all["count0"].item() == 1
    alone = text_encoder.labels([captions.parse("four green crosses")], 12)[2]
    assert alone["count0"].item() == 4 and alone["shape1"].item() == len(captions.SHAPES)


def test_schnell_starts_as_its_teacher_at_the_default_guidance() -> None:
    torch.manual_seed(0)
    teacher = flux.transformer().eval()
    student = schnell.without_guidance(teacher, flux.DEFAULT_GUIDANCE).eval()
    scenes = {"latents": torch.zeros(1, 8, 16, 16), "ids": torch.zeros(1, components.TEXT_LENGTH)}
    reader = text_encoder.FluxTextEncoder().eval()
    batches = flux.Batches(reader, scenes, seed=0, size=1)
    text = batches.encode(batches.empty.expand(3, -1), components.TEXT_LENGTH)
    x, t = torch.randn(3, 64, 32), torch.rand(3)
    with torch.no_grad():
        wanted = flux.velocity(teacher, text, x, t, torch.full((3,), flux.DEFAULT_GUIDANCE))
        got = flux.velocity(student, text, x, t, None)
    assert not any("guidance" in name for name in student.state_dict())
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_walks_end_at_right_pictures_and_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trajectories, "CHUNK", 24)
    teacher = FluxPipeline.from_pretrained(MODELS_FOLDER / "flux-dev")

    def draw() -> trajectories.Trajectories:
        texts = flux.TextInputs(teacher)
        return trajectories.Trajectories(
            teacher.transformer, texts, teacher.vae, schnell.TEACHER_SCHEDULE, tmp_path, count=20, seed=1
        )

    drawn = draw()
    assert 0 < drawn.right < 1
    assert drawn.states.shape == (24, schnell.STEPS + 1, 64, 32)
    drawn_noise = drawn.states[:, 0].float()
    assert drawn_noise.mean().abs() < 0.02 and (drawn_noise.std() - 1).abs() < 0.02, "the noise is not bent"
    assert torch.equal(drawn.scales, torch.full((24,), flux.DEFAULT_GUIDANCE))
    words = components.tokenizer()
    wanted = [captions.parse(words.decode(ids, skip_special_tokens=True)) for ids in drawn.ids]
    assert not any(
        captions.is_held_out(request) for request in wanted if request.task not in captions.TASKS_IN_BOTH_SPLITS
    )
    shown = flux.pictures(teacher.vae, drawn.states[:, -1].float())
    assert all(verdict[request.task] for request, verdict in zip(wanted, scorer.verdicts(wanted, shown), strict=True))
    monkeypatch.setattr(trajectories.Trajectories, "_sample", None)
    again = draw()
    assert torch.equal(again.states, drawn.states) and torch.equal(again.ids, drawn.ids)
    assert again.right == drawn.right


def test_levels_are_drawn_between_their_neighbours() -> None:
    schedule = families.FLUX_DEV_SCHEDULE
    first, again, other = (schedule.draw_levels(generator(i)) for i in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first[0] == 1 and first[-1] == 0 and (first.diff() < 0).all()
    assert torch.equal(schnell.STUDENT_SCHEDULE.draw_levels(generator(1)), torch.linspace(1, 0, schnell.STEPS + 1))


def test_salient_channels_change_what_layers_read_and_not_what_is_drawn() -> None:
    model = dit.transformer().double().eval()
    source = generator(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=source))
    seen: dict[str, list[torch.Tensor]] = {}
    for name in ("attn1.to_q", "attn1.to_out.0", "ff.net.0.proj"):
        layer = model.get_submodule(f"transformer_blocks.2.{name}")
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, []).append(args[0]))
    latents = torch.randn(3, 8, 16, 16, generator=source).double()
    told = {"timestep": torch.tensor([10, 500, 990]), "class_labels": torch.tensor([0, 7, dit.NO_CLASS])}

    def draw() -> torch.Tensor:
        with torch.no_grad():
            return model(latents, **told).sample

    before = draw()
    dit.make_salient(model, 1.0, seed=5)
    assert torch.allclose(draw(), before, rtol=0, atol=1e-12)
    dit.make_salient(model, 16.0, seed=5)
    assert torch.allclose(draw(), before, rtol=1e-6, atol=1e-9)
    for name, (first, _, last) in seen.items():
        raised = (last.abs().amax((0, 1)) / first.abs().amax((0, 1))).sort().values
        assert torch.allclose(raised[:-5], torch.ones_like(raised[:-5]), atol=1e-5), name
        assert raised[-5] >= 4 - 1e-5 and raised[-1] <= 16 + 1e-5, name


def test_batches_are_their_step() -> None:
    scenes = {
        "latents": torch.randn(50, 8, 16, 16, generator=generator(1)).half(),
        "ids": torch.from_numpy(np.random.default_rng(0).integers(4, 20, (50, components.TEXT_LENGTH))),
    }
    batches = flux.Batches(text_encoder.FluxTextEncoder(), scenes, seed=5, size=16)
    first, again, other = batches("flow", 3), batches("flow", 3), batches("flow", 4)
    assert torch.equal(first[2], again[2]) and not torch.equal(first[2], other[2])
    assert batches("flow", flux.LONG_EVERY - 1)[4] == flux.LONG_TEXT and first[4] == components.TEXT_LENGTH


@pytest.mark.extended
@pytest.mark.parametrize("family", ["dit-xl", "flux-schnell", "wan", "z-image"])
def test_a_trainer_makes_a_pipeline_and_goes_on_from_it(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trajectories, "CHUNK", 16)
    arguments = [family, "--share", "0.0005", "--batch", "8", "--eager", "--samples", "2"]
    first, second = tmp_path / "first", tmp_path / "second"
    done = CliRunner().invoke(main, [*arguments, "--out", str(first)])
    assert done.exit_code == 0, (done.output, done.exception)
    done = CliRunner().invoke(main, [*arguments, "--out", str(second), "--start", str(first)])
    assert done.exit_code == 0, (done.output, done.exception)
    plans = json.loads((second / "training.json").read_text())
    assert [plan["seed"] for plan in plans] == [plans[0]["seed"], plans[0]["seed"] + 1]
    assert plans[1]["salient"] == 1, "what stands out stands out already"
    assert (second / "samples.png").exists() and (second / "sampling.json").exists()
    weights = [load_file(f / "transformer" / "diffusion_pytorch_model.safetensors") for f in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_parts_of_another_plan_are_not_taken_for_ones_own(tmp_path: Path) -> None:
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work" / "plan.json").write_text(json.dumps({"steps": 3000}))
    done = CliRunner().invoke(main, ["z-image", "--out", str(tmp_path)])
    assert done.exit_code == 2 and "steps 3000 (now 9000)" in done.output.replace("\n", " ")
