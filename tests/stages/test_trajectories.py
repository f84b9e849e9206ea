"""Which captions are run together and from which seeds, and that a recorded run comes back as it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adatsq_pipe.stages import opened, trajectories
from adatsq_pipe.stages.denoiser import Trajectory
from tests.support.made_store import MadeStore, make_store


def test_captions_are_cut_into_batches_in_their_order_each_with_a_seed_of_its_own(tmp_path: Path) -> None:
    store = make_store(tmp_path, data={"prompts": ["a", "b", "c", "d", "e"], "batch": 2, "seed": 3})
    found = trajectories.calibration_shards(store.context)
    assert [batch.prompts for batch in found] == [("a", "b"), ("c", "d"), ("e",)]
    first = 3 * 1_000_003
    assert [batch.seeds for batch in found] == [(first, first + 1), (first + 2, first + 3), (first + 4,)]
    assert all(batch.inputs == () for batch in found)


def test_what_captions_come_with_goes_with_them_and_a_seed_of_their_own_goes_first(tmp_path: Path) -> None:
    given = [{"call": {"height": 8}, "seed": 70}, {"call": {"height": 9}}, {"seed": 90}]
    store = make_store(tmp_path, data={"prompts": ["a", "b", "c"], "inputs": given, "batch": 2, "seed": 1})
    found = trajectories.calibration_shards(store.context)
    assert [batch.seeds for batch in found] == [(70, 1_000_003 + 1), (90,)]
    assert [batch.inputs for batch in found] == [({"height": 8}, {"height": 9}), ({},)]


def test_a_further_draw_moves_a_manifests_seed_and_is_a_seed_for_the_others(tmp_path: Path) -> None:
    context = make_store(tmp_path).context
    asked = [
        trajectories.asked_for(context, ("a", "b"), ({"seed": 7}, {}), seed, draw)
        for seed, draw in ((0, 0), (1, 1), (2, 2))
    ]
    seeds = [[each.seeds[0] for each in captions] for captions in asked]
    assert seeds == [[7, 1], [7 + 1_000_003, 1_000_003 + 1], [7 + 2 * 1_000_003, 2 * 1_000_003 + 1]]


def _written(store: MadeStore, outputs: tuple[Any, ...]) -> Trajectory:
    """A run with those outputs, written as the unit of batch 1 and read back."""
    steps = tuple(j // 2 for j in range(len(outputs)))
    run = Trajectory(outputs=outputs, steps=steps, timesteps=tuple(9.5 - s for s in steps), latents=torch.ones(2, 3))
    manifest = store.manifest("capture")
    trajectories.write_trajectory(manifest.open_unit("trajectory/001"), run)
    manifest.commit("trajectory/001")
    found = trajectories.read_trajectory(store.context, 1)
    assert (found.steps, found.timesteps) == (run.steps, run.timesteps)
    assert torch.equal(found.latents, run.latents)
    return found


def test_a_run_of_alike_outputs_comes_back_in_its_order(tmp_path: Path) -> None:
    outputs = tuple((torch.full((2, 3), float(j)), torch.full((2, 1), -float(j))) for j in range(4))
    found = _written(make_store(tmp_path), outputs)
    assert len(found.outputs) == 4
    for j, output in enumerate(found.outputs):
        assert isinstance(output, tuple) and len(output) == 2
        assert torch.equal(output[0], outputs[j][0]) and torch.equal(output[1], outputs[j][1])


def test_a_run_of_outputs_of_different_forms_comes_back_with_each_form(tmp_path: Path) -> None:
    outputs = ([torch.zeros(2)], torch.ones(3), (torch.full((1,), 2.0), None), {"sample": torch.full((2, 2), 3.0)})
    found = _written(make_store(tmp_path), outputs).outputs
    assert isinstance(found[0], list) and found[0][0].tolist() == [0, 0]
    assert found[1].tolist() == [1, 1, 1]
    assert isinstance(found[2], tuple) and found[2][0].tolist() == [2] and found[2][1] is None
    assert found[3].keys() == {"sample"} and found[3]["sample"].tolist() == [[3, 3], [3, 3]]


def test_the_denoiser_is_opened_as_the_settings_say_and_stays_open_unless_it_is_to_be_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[tuple[str, dict[str, Any]]]()

    class Opened:
        def __init__(self, folder: str, **how: Any) -> None:
            made.append((folder, how))

    opened._open.cache_clear()
    monkeypatch.setattr(opened, "Denoiser", Opened)
    call = {"num_inference_steps": 7}
    context = make_store(tmp_path, compute={"dtype": "bfloat16"}, model={"call": call}).context
    first = trajectories.denoiser_of(context)
    how = {"dtype": "bfloat16", "device": "cpu", "call": call, "blockwise": False}
    assert made == [(context.model, how)]
    assert trajectories.denoiser_of(context) is first
    changed = trajectories.denoiser_of(context, to_change=True)
    assert trajectories.denoiser_of(context) is not changed and len(made) == 2
    trajectories.denoiser_of(context, folder="/elsewhere")
    assert made[2] == ("/elsewhere", how)
    opened._open.cache_clear()
