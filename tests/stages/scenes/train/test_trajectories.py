"""Trajectories: levels, Euler's rule and the correction by hand; chunks that end at correct pictures and are cached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from torch import Tensor, nn

from adatsq_pipe.stages.scenes.builtin_models import MODELS_FOLDER
from adatsq_pipe.stages.scenes.train import components, families, flux, schnell, trajectories
from adatsq_pipe.stages.scenes.train.training import TrainConfig, generator
from adatsq_pipe.stages.scenes.train.trajectories import SamplingSchedule, Trajectories
from adatsq_pipe.stages.scenes.world import captions, scorer


def test_fixed_levels_are_the_schedules() -> None:
    assert schnell.STUDENT_SCHEDULE.draw_levels(generator(1)).tolist() == [1, 0.75, 0.5, 0.25, 0]


def test_jittered_levels_lie_between_their_own_and_the_next() -> None:
    schedule = families.FLUX_DEV_SCHEDULE
    own = torch.tensor(schedule.levels)
    first, again, other = (schedule.draw_levels(generator(i)) for i in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first[0] == 1 and first[-1] == 0 and (first.diff() < 0).all()
    shares = (first[1:-1] - own[1:-1]) / (own[:-2] - own[1:-1])
    assert torch.allclose(shares, shares[0].expand_as(shares), atol=1e-5), "one draw moves all levels of a chunk"
    assert 0 <= shares[0] <= 0.9


def test_a_correction_moves_the_end_fully_and_the_noise_not_at_all() -> None:
    states = torch.tensor([8.0, 6.0, 3.0, 2.0]).view(1, 4, 1, 1)
    moved = trajectories.corrected(states, torch.tensor([1.0, 0.75, 0.25, 0.0]), torch.tensor([10.0]).view(1, 1, 1))
    assert moved.flatten().tolist() == [8, 8, 9, 10]


def test_states_are_reached_by_eulers_rule(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """dx/dt = t: each step adds t times its length, at the level where the step begins."""
    times: list[float] = []

    def velocity(denoiser: object, text: object, x: Tensor, t: Tensor, scale: object) -> Tensor:
        times.append(t[0].item())
        return t.view(-1, 1, 1).expand_as(x)

    class _Texts:
        def encode(self, ids: Tensor, length: int) -> dict[str, Tensor]:
            return {}

    schedule = SamplingSchedule(levels=(1.0, 0.5, 0.0), euler_steps=(2, 1), probabilities=(1.0, 1.0))
    paths = object.__new__(Trajectories)
    paths.schedule, paths._denoiser, paths._texts = schedule, None, _Texts()  # type: ignore[assignment]
    monkeypatch.setattr(flux, "velocity", velocity)
    states = paths._sample(torch.zeros(2, 12), torch.tensor([1.0, 0.5, 0.0]), torch.ones(2), generator(0))
    assert times == [1.0, 0.75, 0.5]
    assert (states[:, 1] - states[:, 0]).mean().item() == pytest.approx(-(1.0 + 0.75) * 0.25, abs=1e-5)
    assert (states[:, 2] - states[:, 1]).mean().item() == pytest.approx(-0.5 * 0.5, abs=1e-5)


def test_a_model_learns_the_lines_between_states(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """States at levels 1, 0.5 and 0 are 4, 3 and 1: the slopes are 2 and 4, drawn three times to one."""
    losses: list[Callable[[int], Tensor]] = []

    def capture(name: str, model: nn.Module, loss: Callable[[int], Tensor], **_: object) -> nn.Module:
        losses.append(loss)
        return model

    class _Texts:
        def encode(self, ids: Tensor, length: int) -> dict[str, Tensor]:
            return {}

    paths = object.__new__(Trajectories)
    paths.schedule = SamplingSchedule(levels=(1.0, 0.5, 0.0), euler_steps=(1, 1), probabilities=(0.75, 0.25))
    paths.states = torch.tensor([4.0, 3.0, 1.0]).view(1, 3, 1, 1).expand(10, 3, 64, 32)
    paths.levels, paths.ids = torch.tensor([1.0, 0.5, 0.0]).expand(10, 3), torch.zeros(10, 12)
    paths.scales = torch.full((10,), torch.nan)
    monkeypatch.setattr(trajectories, "train_part", capture)
    monkeypatch.setattr(flux, "velocity", lambda denoiser, text, x, t, scale: torch.where(x == 4.0, 2.0, 3.0))
    config = TrainConfig(steps=1, rate=1.0, batch=2000, seed=5, compile=False)
    model = flux.transformer(guidance=False)
    trajectories.train_on("name", model, paths, _Texts(), tmp_path, config)  # type: ignore[arg-type]
    assert losses[0](0).item() == pytest.approx(0.25, abs=0.04), "right at 4, off by 1 at 3, which is a quarter"


@pytest.mark.run
def test_chunks_end_at_correct_pictures_and_are_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trajectories, "CHUNK", 24)
    teacher = FluxPipeline.from_pretrained(MODELS_FOLDER / "flux-dev")

    def sample() -> Trajectories:
        texts, schedule = flux.TextInputs(teacher), schnell.TEACHER_SCHEDULE
        return Trajectories(teacher.transformer, texts, teacher.vae, schedule, tmp_path, count=20, seed=1)

    paths = sample()
    assert 0 < paths.right < 1
    assert paths.states.shape == (24, schnell.STEPS + 1, 64, 32)
    noise = paths.states[:, 0].float()
    assert noise.mean().abs() < 0.02 and (noise.std() - 1).abs() < 0.02
    assert torch.equal(paths.scales, torch.full((24,), flux.DEFAULT_GUIDANCE))
    words = components.tokenizer()
    requests = [captions.parse(words.decode(ids, skip_special_tokens=True)) for ids in paths.ids]
    assert not any(captions.is_held_out(r) for r in requests if r.task not in captions.TASKS_IN_BOTH_SPLITS)
    pictures = flux.pictures(teacher.vae, paths.states[:, -1].float())
    assert all(v[r.task] for r, v in zip(requests, scorer.verdicts(requests, pictures), strict=True))
    monkeypatch.setattr(Trajectories, "_sample", None)
    again = sample()
    assert torch.equal(again.states, paths.states) and torch.equal(again.ids, paths.ids)
    assert again.right == paths.right
