"""A recorded run comes back as it was written, whatever form its outputs have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from adatsq_pipe.stages.calibration import trajectories
from adatsq_pipe.stages.denoiser.call import Trajectory
from tests.support.made_store import MadeStore, make_store


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
