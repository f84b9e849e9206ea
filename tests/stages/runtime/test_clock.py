"""The step of a call: which argument is the timestep, and which calibrated timestep is nearest."""

from __future__ import annotations

import functools
import inspect

import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.runtime.clock import (
    denoised_timesteps,
    monotonic,
    nearest_step,
    timestep_argument,
    timestep_of,
)

CALIBRATED = [1.0, 0.7, 0.3, 0.05]


def nearest_by_hand(value: float) -> int:
    best = 0
    for step, level in enumerate(CALIBRATED):
        if abs(value - level) < abs(value - CALIBRATED[best]):
            best = step
    return best


@pytest.mark.parametrize("value", [2.0, 1.0, 0.86, 0.84, 0.51, 0.49, 0.3, 0.18, 0.17, 0.05, -1.0])
def test_the_step_is_that_of_the_nearest_calibrated_timestep(value: float) -> None:
    assert nearest_step(torch.tensor([value]), torch.tensor(CALIBRATED)) == nearest_by_hand(value)


def test_the_step_is_found_when_timesteps_rise() -> None:
    rising = torch.tensor([0.0, 0.4, 0.8])
    assert [nearest_step(torch.tensor([t]), rising) for t in (0.1, 0.5, 0.9)] == [0, 1, 2]


def test_of_two_equally_near_the_earlier_step_is_taken() -> None:
    assert nearest_step(torch.tensor([0.75]), torch.tensor([1.0, 0.5, 0.0])) == 0
    assert nearest_step(torch.tensor([0.25]), torch.tensor([1.0, 0.5, 0.0])) == 1
    assert nearest_step(torch.tensor([3.5]), torch.tensor([3.5, 3.5, 3.5])) == 0


@pytest.mark.parametrize("now", range(4))
def test_the_tokens_of_a_given_frame_do_not_change_the_step(now: int) -> None:
    """Wan2.2-TI2V: 0 for the tokens of the picture it is given, the step's own timestep for all others."""
    tokens = torch.tensor([[0.0, 0.0, CALIBRATED[now], CALIBRATED[now]]])
    assert nearest_step(tokens, torch.tensor(CALIBRATED)) == now
    rising = 1 - torch.tensor(CALIBRATED)
    assert nearest_step(1 - tokens, rising) == now, "where 1 is a clean picture"


def test_of_samples_at_several_steps_the_noisiest_counts() -> None:
    assert nearest_step(torch.tensor([0.31, 0.71, 0.05]), torch.tensor(CALIBRATED)) == 1


def test_the_denoised_timestep_is_the_one_that_moves_from_noise_to_picture() -> None:
    assert denoised_timesteps([(0.0, 1.0), (0.0, 0.6), (0.0, 0.1)]) == [1.0, 0.6, 0.1]
    assert denoised_timesteps([(0.0, 1.0), (0.4, 1.0), (0.9, 1.0)]) == [0.0, 0.4, 0.9], "timesteps that rise"
    assert denoised_timesteps([(900.0, 999.0), (500.0, 900.0)]) == [999.0, 900.0], "frames that follow each other"
    assert denoised_timesteps([(0.2, 0.2), (0.6, 0.6)]) == [0.2, 0.6]
    assert denoised_timesteps([(0.0, 0.7)]) == [0.7]


def flux(hidden_states: Tensor, timestep: Tensor | None = None, guidance: Tensor | None = None) -> None: ...


def z_image(x: Tensor, t: Tensor) -> None: ...


def unnamed(x: Tensor, level: Tensor) -> None: ...


def test_the_timestep_is_found_by_its_usual_names_or_the_one_asked_for() -> None:
    assert timestep_argument(flux) == ("timestep", 1)
    assert timestep_argument(z_image) == ("t", 1)
    assert timestep_argument(flux, "guidance") == ("guidance", 2)
    assert timestep_argument(unnamed) is None
    assert timestep_argument(flux, "sigma") is None


def test_the_timestep_is_read_by_keyword_and_by_position() -> None:
    x, t = torch.zeros(2, 4), torch.tensor([0.5, 0.25])
    assert timestep_of(flux, (x,), {"timestep": t}).tolist() == [0.5, 0.25]
    assert timestep_of(flux, (x, t), {}).tolist() == [0.5, 0.25]
    assert timestep_of(flux, (x, t), {"guidance": torch.tensor([3.5])}, "guidance").tolist() == [3.5]


def test_without_a_name_it_is_the_first_number_or_vector_after_the_sample() -> None:
    x = torch.zeros(4)
    assert timestep_of(unnamed, (x, torch.zeros(2, 4), torch.tensor([0.5])), {}).tolist() == [0.5]
    assert timestep_of(unnamed, (x, 7, torch.tensor([0.5])), {}).tolist() == [7.0]


def test_the_timestep_is_a_flat_float32_vector_without_a_gradient() -> None:
    per_token = torch.full((2, 3), 900, dtype=torch.int64)
    found = timestep_of(flux, (torch.zeros(1),), {"timestep": per_token})
    assert found.dtype == torch.float32 and found.tolist() == [900.0] * 6
    assert not timestep_of(flux, (torch.zeros(1), torch.ones(1, requires_grad=True)), {}).requires_grad
    assert timestep_of(flux, (torch.zeros(1), 3), {}).tolist() == [3.0]


@pytest.mark.parametrize(("name", "words"), [("", "timestep, timesteps, t,"), ("guidance", "arguments guidance;")])
def test_a_call_without_a_timestep_is_refused(name: str, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        timestep_of(flux, (torch.zeros(1),), {}, name)
    with pytest.raises(TypeError, match=words):
        timestep_of(unnamed, (torch.zeros(4), torch.zeros(2, 4)), {}, name)


def test_timesteps_that_only_fall_or_only_rise_are_monotonic() -> None:
    assert monotonic([9, 9, 5, 1]) and monotonic([0.1, 0.1, 0.2]) and monotonic([3])
    assert not monotonic([1, 3, 2]) and not monotonic([3, 1, 2])


def test_a_methods_parameters_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        def forward(self, sample: object, timestep: object) -> None: ...

        def replaced(*args: object, **kwargs: object) -> None: ...  # without self, as a decorator leaves it

    model = Model()
    for _ in range(2):
        assert timestep_argument(model.forward) == ("timestep", 1)
        assert timestep_argument(model.replaced) is None
        monkeypatch.setattr(inspect, "signature", None)
    monkeypatch.undo()
    assert timestep_argument(functools.partial(model.forward, 0.0)) == ("timestep", 0)
    assert timestep_argument(lambda x, t: None) == ("t", 1)
