"""The capture stage on a fake denoiser: runs, survey and activations against the same network in plain torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.settings import DataSettings
from adatsq_pipe.stages.calibration.capture_worker import Capture
from adatsq_pipe.stages.calibration.survey import left_of, survey_of, unit_waves
from adatsq_pipe.stages.calibration.trajectories import read_trajectory, write_trajectory
from adatsq_pipe.storage import arrays, tensors
from tests.support import two_layer_denoiser
from tests.support.made_context import FIRST, MODULATION, TOKENS
from tests.support.made_store import MadeStore, make_store
from tests.support.plain_network import OneCall, output_of, run_of, seed_of
from tests.support.two_layer_denoiser import TwoLayerDenoiser


def _opened(
    folder: Path, denoiser: TwoLayerDenoiser, patch: pytest.MonkeyPatch, **changes: Any
) -> tuple[MadeStore, Capture]:
    """A store that says what the denoiser does, and the stage's worker with that denoiser, its runs recorded."""
    calls = tuple(step for step in range(denoiser.steps) for _ in range(2 if denoiser.guided else 1))
    store = make_store(folder, calls=calls, **changes)
    denoiser.install(patch)
    worker = Capture(store.context)
    for batch in range(store.batches):
        worker(f"trajectory/{batch:03d}")
    return store, worker


def _runs(store: MadeStore, denoiser: TwoLayerDenoiser, batch: int) -> list[tuple[list[OneCall], Tensor]]:
    """The whole run of each sample of a batch: its calls, and the latents it ends with."""
    data, net = store.context.settings[DataSettings], next(iter(denoiser.parts.values()))
    captions = list(enumerate(data.prompts))[batch * data.batch : (batch + 1) * data.batch]
    how = {"steps": denoiser.steps, "guided": denoiser.guided}
    return [run_of(net, prompt, seed_of(data.seed, i), **how) for i, prompt in captions]


GUIDED = pytest.mark.parametrize("guided", [False, True], ids=["one call a step", "two calls a step"])


@GUIDED
def test_a_trajectory_holds_what_the_network_returned_at_every_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guided: bool
) -> None:
    denoiser = TwoLayerDenoiser(guided=guided)
    store, _ = _opened(tmp_path, denoiser, monkeypatch, data={"prompts": ["a", "b", "c"]})
    for batch, samples in enumerate([2, 1]):
        marker, folder = store.context.read("capture", f"trajectory/{batch:03d}")
        assert marker.value == {"calls": len(store.calls), "samples": samples}
        stored, marks = tensors.read(folder), arrays.attributes(folder)
        assert tuple(marks["steps"]) == store.calls
        assert marks["timesteps"] == [1000 - 300 * step for step in store.calls]
        runs = _runs(store, denoiser, batch)
        torch.testing.assert_close(stored["latents"], torch.stack([latents for _, latents in runs]))
        assert stored["output0"].shape == (len(store.calls), samples, TOKENS, 16)
        for j in range(len(store.calls)):
            wanted = [output_of(denoiser.transformer, calls[j])[0] for calls, _ in runs]
            torch.testing.assert_close(stored["output0"][j], torch.stack(wanted))


@GUIDED
def test_the_survey_says_what_each_layer_is_fed_and_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guided: bool
) -> None:
    store, worker = _opened(tmp_path, TwoLayerDenoiser(guided=guided), monkeypatch)
    worker("survey")
    found = survey_of(store.context).plain()
    token = {"kind": "tokens", "source": FIRST, "in": 16}
    assert found["layers"] == [
        {"name": "blocks.0.first", "out": 24, "macs": 5 * 16 * 24, **token},
        {"name": "blocks.0.second", "out": 8, "macs": 5 * 16 * 8, **token},
        {"name": MODULATION, "out": 16, "macs": 8 * 16, "kind": "conditioning", "source": MODULATION, "in": 8},
    ]
    assert found["steps"] == 3 and found["calls"] == ([0, 0, 1, 1, 2, 2] if guided else [0, 1, 2])
    assert found["timesteps"] == [1000.0, 700.0, 400.0]
    assert found["parameters"] == 24 * 16 + 24 + 8 * 16 + 8 + 16 * 8 + 16 + 16 * 16 + 16
    assert found == store.survey(), "the made-up store is like a real one"


def test_the_timestep_of_a_step_is_the_largest_of_its_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, worker = _opened(tmp_path, TwoLayerDenoiser(guided=True), monkeypatch)
    manifest, run = store.manifest("capture"), read_trajectory(store.context, 0)
    manifest.withdraw("trajectory/000")
    write_trajectory(manifest.open_unit("trajectory/000"), replace(run, timesteps=(1000, 990, 650, 700, 400, 410)))
    manifest.commit("trajectory/000")
    worker("survey")
    assert survey_of(store.context).timesteps == (1000, 700, 410)


def test_recorded_runs_of_other_noise_levels_are_refused_before_they_are_added_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, worker = _opened(tmp_path, TwoLayerDenoiser(), monkeypatch)
    manifest, run = store.manifest("capture"), read_trajectory(store.context, 1)
    manifest.withdraw("trajectory/001")
    write_trajectory(manifest.open_unit("trajectory/001"), replace(run, timesteps=(700, 400, 100)))
    manifest.commit("trajectory/001")
    with pytest.raises(StageError, match="the prompts of data are denoised at different noise levels"):
        worker("survey")


def test_timesteps_that_rise_have_the_noisiest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, worker = _opened(tmp_path, TwoLayerDenoiser(guided=True), monkeypatch)
    manifest = store.manifest("capture")
    for unit in range(store.batches):
        run = read_trajectory(store.context, unit)
        manifest.withdraw(f"trajectory/{unit:03d}")
        rising = replace(run, timesteps=(0.0, 0.1, 0.4, 0.4, 0.9, 0.8))
        write_trajectory(manifest.open_unit(f"trajectory/{unit:03d}"), rising)
        manifest.commit(f"trajectory/{unit:03d}")
    worker("survey")
    assert survey_of(store.context).timesteps == (0.0, 0.4, 0.8)


def test_a_survey_of_a_batch_that_is_cut_counts_by_sample_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, worker = _opened(tmp_path, TwoLayerDenoiser(), monkeypatch)
    worker.micro.size = 1
    worker("survey")
    assert survey_of(store.context).plain() == store.survey()


def test_of_two_denoisers_each_is_surveyed_and_has_its_own_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("transformer", "transformer_2")
    store, worker = _opened(tmp_path, TwoLayerDenoiser(names=names), monkeypatch)
    worker("survey")
    found = survey_of(store.context)
    assert found.steps_of_component == {"transformer": (0,), "transformer_2": (1, 2)}
    rows = [(layer.name, layer.component, layer.input_of) for layer in found.layers]
    first = [(f"{part}.{name}", part, f"{part}.{store.source[name]}") for part in names for name in store.names]
    assert rows == first
    assert [found.steps_of(layer) for layer in found.layers] == [[0]] * 3 + [[1, 2]] * 3


def test_a_second_denoiser_that_is_never_called_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = TwoLayerDenoiser(steps=1, names=("transformer", "transformer_2"))
    _, worker = _opened(tmp_path, denoiser, monkeypatch)
    with pytest.raises(StageError, match="transformer_2 is never called; ask for more steps"):
        worker("survey")


def test_the_final_projection_is_left_with_its_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, worker = _opened(tmp_path, TwoLayerDenoiser(), monkeypatch)
    assert left_of(store.context) == [], "before it is known"
    worker("left")
    (left,) = left_of(store.context)
    assert (left["part"], left["parameters"], left["why"]) == (
        "transformer",
        16 * 16 + 16,
        "final projection, outside the repeated blocks",
    )


def _activations(store: MadeStore, worker: Capture) -> Iterator[tuple[int, range, dict[str, Tensor], dict[str, Any]]]:
    """(batch, steps, tensors, attributes) of every unit of activations, done here."""
    worker("survey")
    for unit in unit_waves(store.context)[2]:
        worker(unit)
        block, batch = (int(place) for place in unit.partition("/")[2].split("-"))
        _, folder = store.context.read("capture", unit)
        steps = [range(0, 2), range(2, 3)][block]
        yield batch, steps, tensors.read(folder), arrays.attributes(folder)


def _places(rows: Tensor, tokens: Iterable[Tensor]) -> list[int]:
    """The one token that each row is, up to the order of sums."""
    distances = torch.cdist(rows.double(), torch.stack(list(tokens)).double())
    assert (distances.amin(1) < 1e-4).all() and ((distances < 1e-2).sum(1) == 1).all()
    return distances.argmin(1).tolist()


@GUIDED
@pytest.mark.parametrize("size", [None, 1], ids=["whole", "cut"])
def test_activations_hold_different_rows_of_the_true_input_and_the_exact_peaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guided: bool, size: int | None
) -> None:
    denoiser = TwoLayerDenoiser(guided=guided)
    store, worker = _opened(tmp_path, denoiser, monkeypatch)
    worker.micro.size = size
    per_step, chosen, negative = 2 if guided else 1, list[list[int]](), 0
    for batch, steps, stored, marks in _activations(store, worker):
        assert sorted(stored) == sorted(f"{kind}:{name}" for kind in ("rows", "absmax") for name in (FIRST, MODULATION))
        assert (marks["start"], marks["stop"], marks["calls_per_step"]) == (steps.start, steps.stop, per_step)
        runs = _runs(store, denoiser, batch)
        for name, per_call in ((FIRST, 6 // per_step), (MODULATION, 2)):
            width = 16 if name == FIRST else 8
            assert stored[f"rows:{name}"].shape == (len(steps) * per_step, per_call, width)
            for place in range(len(steps) * per_step):
                call = steps.start * per_step + place
                tokens = [token for calls, _ in runs for token in calls[call].inputs()[name]]
                if not guided or name == FIRST:
                    places = _places(stored[f"rows:{name}"][place], tokens)
                    assert len(set(places)) == per_call
                    chosen += [places] if name == FIRST else []
                largest = [max((token[i].item() for token in tokens), key=abs) for i in range(width)]
                negative += sum(value < 0 for value in largest)
                wanted = torch.tensor([abs(value) for value in largest])
                torch.testing.assert_close(stored[f"absmax:{name}"][place], wanted)
    assert negative > 40, "many peaks are of negative values"
    assert len({tuple(places) for places in chosen}) == len(chosen) // per_step, "by step and batch, not by call"


def test_a_unit_of_activations_done_again_has_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, worker = _opened(tmp_path, TwoLayerDenoiser(), monkeypatch)
    worker("survey")
    digests = []
    for _ in range(2):
        worker("activations/000-001")
        digests.append(store.manifest("capture").read("activations/000-001").digest)
        store.manifest("capture").withdraw("activations/000-001")
    assert digests[0] == digests[1]


def test_at_least_one_row_of_each_call_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, worker = _opened(tmp_path, TwoLayerDenoiser(guided=True), monkeypatch, capture={"rows": 1, "block": 1})
    worker("survey")
    worker("activations/000-000")
    _, folder = store.context.read("capture", "activations/000-000")
    assert tensors.read(folder)[f"rows:{FIRST}"].shape == (2, 1, 16)


def test_a_network_that_returns_nan_is_refused_with_the_place_where_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = TwoLayerDenoiser()
    with torch.no_grad():
        denoiser.transformer.get_submodule("proj_out").bias[0] = float("nan")
    with pytest.raises(StageError, match=r"input of layer after the last block at step 0 \(timestep 1000\)"):
        _opened(tmp_path / "late", denoiser, monkeypatch)
    monkeypatch.setattr(two_layer_denoiser, "condition_of", lambda prompt: torch.full((8,), float("nan")))
    with pytest.raises(StageError, match=rf"input of layer {MODULATION} at step 0 .*; check the model"):
        _opened(tmp_path / "early", TwoLayerDenoiser(), monkeypatch)


def test_latents_that_change_size_over_a_run_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = TwoLayerDenoiser()
    monkeypatch.setattr(denoiser, "state", lambda call: [torch.zeros(2, 9 if call.step < 2 else 4)])
    with pytest.raises(StageError, match=r"\[\(2, 9\)\] at the first step and \[\(2, 4\)\] at step 2"):
        _opened(tmp_path, denoiser, monkeypatch)


def test_an_input_that_is_not_finite_is_refused_with_its_layer_and_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two_layer_denoiser, "condition_of", lambda prompt: torch.tensor([float("inf")] + [0.0] * 7))
    _, worker = _opened(tmp_path, TwoLayerDenoiser(), monkeypatch)
    worker("survey")
    with pytest.raises(StageError, match=rf"input of layer {MODULATION} at step 2 \(timestep 400\)"):
        worker("activations/001-000")
