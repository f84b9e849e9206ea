"""Runs of one set of prompts: the same noise at every step, or a line that says which prompt differs."""

from __future__ import annotations

import pytest
from PIL import Image

from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.denoiser.call import Call
from adatsq_pipe.stages.denoiser.conditions import Conditions
from adatsq_pipe.stages.denoiser.noise_levels import NoiseLevels, check_alike, form_of

FOUR = NoiseLevels(steps=(0, 1, 2, 3), timesteps=(1000, 750, 500, 250))


def levels(*timesteps: float) -> NoiseLevels:
    return NoiseLevels(steps=tuple(range(len(timesteps))), timesteps=timesteps)


def test_runs_of_the_same_levels_are_alike() -> None:
    assert FOUR.are_those_of(FOUR)
    assert levels(1000, 790, 540, 260).are_those_of(FOUR), "a schedule that is shifted a little, by a picture's size"


@pytest.mark.parametrize(
    "other",
    [
        levels(500, 250),
        levels(750, 500, 250, 0),
        levels(1000, 980, 950, 800),
        NoiseLevels(steps=(0, 0, 1, 1, 2, 2, 3, 3), timesteps=(1000, 1000, 750, 750, 500, 500, 250, 250)),
    ],
)
def test_runs_of_other_levels_are_not(other: NoiseLevels) -> None:
    """Fewer steps; the same number, each a level lower; a schedule shifted far; twice the calls (guidance)."""
    assert not other.are_those_of(FOUR)


def test_the_line_names_both_prompts_their_levels_and_what_differs() -> None:
    first = Conditions(prompts=("a boat",), seeds=(0,), inputs=({"strength": 0.9, "guidance_scale": 3.0},))
    other = Conditions(prompts=("a cat",), seeds=(1,), inputs=({"strength": 0.5, "guidance_scale": 3.0},))
    check_alike("data", other, FOUR, first, FOUR)
    with pytest.raises(StageError) as caught:
        check_alike("data", other, levels(500, 250), first, FOUR)
    line = str(caught.value)
    assert "'a boat' in 4 steps (timesteps 1000, 750, 500, 250)" in line and "\n" not in line
    assert "'a cat' in 2 steps (timesteps 500, 250); strength is 0.9 there and 0.5 here" in line
    assert "data.prompts_file" in line and "guidance" not in line


def test_calls_differ_in_form_by_arguments_and_sizes_not_by_prompts_and_pixels() -> None:
    def form(size: tuple[int, int], colour: str, **more: object) -> tuple[object, ...]:
        row = {"image": Image.new("RGB", size, colour), "frames": [Image.new("RGB", size, colour)], **more}
        return form_of(Conditions(prompts=(colour,), seeds=(1,), inputs=(row,)))

    assert form((16, 16), "red") == form((16, 16), "blue")
    assert form((16, 16), "red") != form((16, 32), "red")
    assert form((16, 16), "red", strength=0.5) != form((16, 16), "red", strength=0.6)
    assert form_of(Conditions(prompts=("a",), seeds=(1,))) != form_of(Conditions(prompts=("a", "b"), seeds=(1, 2)))


def test_a_run_without_a_call_or_with_timesteps_up_and_down_is_refused() -> None:
    with pytest.raises(StageError, match="without one call of its denoiser: ask for more steps"):
        NoiseLevels.of([])
    calls = [Call(args=(), kwargs={}, step=i, timestep=t) for i, t in enumerate((3.0, 1.0, 2.0))]
    with pytest.raises(StageError, match="goes up and down"):
        NoiseLevels.of(calls)


def test_a_step_s_timestep_is_that_of_its_noisiest_call() -> None:
    falling = NoiseLevels(steps=(0, 0, 1, 1, 2), timesteps=(1000.0, 990.0, 700.0, 650.0, 400.0))
    assert falling.noisiest() == (1000.0, 700.0, 400.0)
    rising = NoiseLevels(steps=(0, 0, 1, 1, 2), timesteps=(0.0, 0.1, 0.4, 0.5, 0.9))
    assert rising.noisiest() == (0.0, 0.4, 0.9), "the first is pure noise there"
