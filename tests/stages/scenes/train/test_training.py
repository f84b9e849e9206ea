"""The training loop: the schedule, the running average, and parts that resume to the same bytes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from adatsq_pipe.stages.scenes.train.training import generator, rate_at, train_part


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


def test_a_killed_part_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    expected = _train(alone)
    for at in (3, 67, 140):
        with pytest.raises(Killed):
            _train(killed, kill_at=at)
    assert torch.equal(_train(killed), expected)
    assert (killed / "part.safetensors").read_bytes() == (alone / "part.safetensors").read_bytes()
    assert (killed / "part_loss.csv").read_text() == (alone / "part_loss.csv").read_text()


def test_a_finished_part_is_loaded_without_training(tmp_path: Path) -> None:
    expected = _train(tmp_path)
    assert torch.equal(_train(tmp_path, kill_at=0), expected)


def test_it_learns(tmp_path: Path) -> None:
    _train(tmp_path)
    weight = load_file(tmp_path / "part.safetensors")["model.weight"]
    assert (weight - torch.tensor([[2.0, 0, 0, 0], [0, 2.0, 0, 0]])).abs().max() < 0.1


@pytest.mark.parametrize(
    ("step", "steps", "rate"),
    [
        (0, 1000, 1 / 200),
        (99, 1000, 0.5),
        (199, 1000, 1.0),
        (200, 1000, 1.0),
        (600, 1000, 0.01 + 0.99 / 2),
        (1000, 1000, 0.01),
        (0, 10, 1 / 2),
        (6, 10, 0.01 + 0.99 / 2),
    ],
)
def test_the_rate_warms_up_over_a_fifth_or_200_steps_and_falls_to_a_hundredth(
    step: int, steps: int, rate: float
) -> None:
    assert rate_at(step, steps) == pytest.approx(rate)


def test_the_average_follows_the_weights_with_its_decay(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    history: list[Tensor] = []

    def loss(step: int) -> Tensor:
        history.append(model.weight.detach().clone())
        return model(torch.ones(1, 3)).square().sum()

    smooth = train_part("part", model, loss, steps=6, rate=0.1, work=tmp_path, average=0.3)
    history.append(load_file(tmp_path / "part.safetensors")["model.weight"])
    expected = history[0]
    for step, weight in enumerate(history[1:]):
        decay = min(0.3, (step + 1) / (step + 10))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(smooth.state_dict()["weight"], expected)


def test_the_curve_is_the_mean_loss_of_each_hundred_steps(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    losses: list[float] = []

    def loss(step: int) -> Tensor:
        value = (model(torch.ones(1, 1)) - 1).square().sum() + step
        losses.append(value.item())
        return value

    train_part("part", model, loss, steps=250, rate=0.01, work=tmp_path)
    with (tmp_path / "part_loss.csv").open() as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows] == ["step", "100", "200"]
    assert float(rows[1][1]) == pytest.approx(np.mean(losses[:100]), abs=1e-5)
    assert float(rows[2][1]) == pytest.approx(np.mean(losses[100:200]), abs=1e-5)


def test_a_checkpoint_knows_its_step(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        _train(tmp_path, kill_at=67)
    with safe_open(tmp_path / "part.safetensors", "pt") as file:
        assert json.loads(file.metadata()["progress"])["step"] == 60


def test_a_generator_is_decided_by_all_its_parts() -> None:
    draws = [
        torch.rand(4, generator=generator(*parts)) for parts in ((1, "a", 2), (1, "a", 2), (1, "b", 2), (1, "a", 3))
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[3])
