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
from adatsq_pipe.stages.calibration.survey import activation_units, left_of, survey_of, unit_waves
from adatsq_pipe.stages.calibration.trajectories import read_trajectory, write_trajectory
from adatsq_pipe.stages.denoiser.call import Around, Call, Trajectory, bare_pass
from adatsq_pipe.stages.denoiser.conditions import Conditions
from adatsq_pipe.storage import arrays, tensors
from tests.support import two_layer_denoiser
from tests.support.made_context import FIRST, MODULATION, TOKENS
from tests.support.made_store import MadeStore, make_store
from tests.support.plain_network import OneCall, output_of, run_of, seed_of
from tests.support.two_layer_denoiser import TwoLayerDenoiser


def _opened(
    folder: Path, denoiser: TwoLayerDenoiser, patch: pytest.MonkeyPatch, **changes: Any
) -> tuple[MadeStore, Capture]:
    """A store that says what the denoiser does, and the stage's worker with that denoiser."""
    calls = tuple(step for step in range(denoiser.steps) for _ in range(2 if denoiser.guided else 1))
    store = make_store(folder, calls=calls, **changes)
    denoiser.install(patch)
    return store, Capture(store.context)


def _captured(store: MadeStore, worker: Capture) -> None:
    """Do all tasks of the stage, in order."""
    for wave in range(2):
        for task in unit_waves(store.context)[wave]:
            worker(task)


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
    store, worker = _opened(tmp_path, denoiser, monkeypatch, data={"prompts": ["a", "b", "c"]})
    _captured(store, worker)
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


def _at_other_levels(denoiser: TwoLayerDenoiser, levels: dict[int, tuple[float, ...]]) -> TwoLayerDenoiser:
    """The denoiser, whose runs say that their calls have these timesteps, by the run's first seed."""
    record, rehearse = denoiser.record, denoiser.rehearse

    def recorded(conditions: Conditions, **more: Any) -> Trajectory:
        return replace(record(conditions, **more), timesteps=levels[conditions.seeds[0]])

    def rehearsed(conditions: Conditions, around: Around = bare_pass) -> list[Call]:
        calls = rehearse(conditions, around)
        return [replace(c, timestep=t) for c, t in zip(calls, levels[conditions.seeds[0]], strict=True)]

    denoiser.record, denoiser.rehearse = recorded, rehearsed  # type: ignore[method-assign]
    return denoiser


@pytest.mark.parametrize(
    ("levels", "noisiest"),
    [
        ((1000.0, 990.0, 700.0, 650.0, 410.0, 400.0), (1000.0, 700.0, 410.0)),
        ((0.0, 0.1, 0.4, 0.4, 0.8, 0.9), (0.0, 0.4, 0.8)),
    ],
    ids=["falling", "rising"],
)
def test_the_timestep_of_a_step_is_that_of_its_noisiest_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, levels: tuple[float, ...], noisiest: tuple[float, ...]
) -> None:
    denoiser = TwoLayerDenoiser(guided=True)
    store, worker = _opened(tmp_path, denoiser, monkeypatch)
    _at_other_levels(denoiser, {seed_of(store.context.settings[DataSettings].seed, 0): levels})
    worker("survey")
    assert survey_of(store.context).timesteps == noisiest
    worker("trajectory/000")
    assert read_trajectory(store.context, 0).timesteps == levels


def test_a_run_of_other_noise_levels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = TwoLayerDenoiser()
    store, worker = _opened(tmp_path, denoiser, monkeypatch)
    data = store.context.settings[DataSettings]
    seeds = [seed_of(data.seed, batch * data.batch) for batch in range(2)]
    _at_other_levels(denoiser, {seeds[0]: (1000.0, 700.0, 400.0), seeds[1]: (700.0, 400.0, 100.0)})
    worker("survey")
    worker("trajectory/000")
    with pytest.raises(StageError, match="the prompts of data are denoised at different noise levels"):
        worker("trajectory/001")
    manifest, run = store.manifest("capture"), read_trajectory(store.context, 0)
    assert not manifest.done("trajectory/001")
    write_trajectory(manifest.open_unit("trajectory/001"), replace(run, timesteps=(700.0, 400.0, 100.0)))
    manifest.commit("trajectory/001")
    manifest.withdraw("activations/000-001")
    with pytest.raises(StageError, match="the prompts of data are denoised at different noise levels"):
        worker("trajectory/001")


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
    _captured(store, worker)
    for unit in [unit for units in activation_units(store.context).values() for unit in units]:
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


@GUIDED
@pytest.mark.parametrize("names", [("transformer",), ("transformer", "transformer_2")], ids=["one", "two denoisers"])
def test_every_call_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guided: bool, names: tuple[str, ...]
) -> None:
    denoiser = TwoLayerDenoiser(guided=guided, names=names)
    store, worker = _opened(tmp_path, denoiser, monkeypatch)
    _captured(store, worker)
    assert store.manifest("capture").missing(list(store.manifest("capture").vouched())) == []
    assert denoiser.calls == store.batches * len(store.calls) + len(names) - 1, "the survey's first is the first run's"
    assert denoiser.micro.reduction() is None


def test_a_worker_that_did_not_make_the_survey_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for name, others in (("one", False), ("several", True)):
        denoiser = TwoLayerDenoiser(guided=True)
        store, worker = _opened(tmp_path / name, denoiser, monkeypatch)
        for wave in range(2):
            for task in sorted(unit_waves(store.context)[wave], reverse=True):
                (Capture(store.context) if others else worker)(task)
        assert denoiser.calls == 2 * 6 + others
        digests.append({unit: m.digest for unit, m in store.manifest("capture").markers().items()})
    assert digests[0] == digests[1] and len(digests[0]) == 2 + 2 * (1 + 2)


@pytest.mark.parametrize(
    ("lost", "calls"),
    [
        (["activations/001-000"], 1),
        (["activations/000-000", "activations/001-000"], 3),
        (["trajectory/000"], 3),
        (["trajectory/000", "activations/001-000"], 3),
        ([], 0),
    ],
    ids=["a block", "all blocks", "the run", "the run and its last block", "nothing"],
)
def test_what_is_lost_of_a_batch_is_done_again_alike_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: list[str], calls: int
) -> None:
    denoiser = TwoLayerDenoiser()
    store, worker = _opened(tmp_path, denoiser, monkeypatch)
    _captured(store, worker)
    manifest = store.manifest("capture")
    before, made = {unit: (m.digest, m.seconds) for unit, m in manifest.markers().items()}, denoiser.calls
    for unit in lost:
        manifest.withdraw(unit)
    worker("trajectory/000")
    after = {unit: (m.digest, m.seconds) for unit, m in manifest.markers().items()}
    assert denoiser.calls - made == calls
    assert {unit: digest for unit, (digest, _) in after.items()} == {u: digest for u, (digest, _) in before.items()}
    assert [unit for unit in after if after[unit][1] != before[unit][1]] == sorted(lost)


def test_a_kill_loses_one_block_s_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = TwoLayerDenoiser()
    store, worker = _opened(tmp_path, denoiser, monkeypatch)
    worker("survey")
    run = denoiser.run

    def killed(call: Call, around: Around = bare_pass) -> Tensor:
        if call.step == 2:
            raise KeyboardInterrupt
        return run(call, around)

    monkeypatch.setattr(denoiser, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        worker("trajectory/000")
    assert list(store.manifest("capture").units()) == ["activations/000-000", "survey"], "steps 0 and 1 are written"
    monkeypatch.setattr(denoiser, "run", run)
    worker("trajectory/000")
    other, whole = _opened(tmp_path / "whole", TwoLayerDenoiser(), monkeypatch)
    whole("survey")
    whole("trajectory/000")
    found, wanted = (s.manifest("capture").markers() for s in (store, other))
    assert {unit: m.digest for unit, m in found.items()} == {unit: m.digest for unit, m in wanted.items()}


def test_where_a_batch_does_not_fit_all_its_units_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = TwoLayerDenoiser()
    store, worker = _opened(tmp_path, denoiser, monkeypatch)
    worker("survey")
    forward, full = denoiser.transformer.forward, torch.OutOfMemoryError("CUDA out of memory")

    def scarce(hidden: Tensor, *more: Tensor) -> Tensor:
        if len(hidden) > 1:
            raise full
        return forward(hidden, *more)

    monkeypatch.setattr(denoiser.transformer, "forward", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        worker("trajectory/000")
    assert worker.recover("trajectory/000", full)
    worker("trajectory/000")
    found = store.manifest("capture").markers()
    units = ["activations/000-000", "activations/001-000", "trajectory/000"]
    assert {unit: found[unit].micro_batch for unit in units} == {unit: {"from": 2, "to": 1} for unit in units}
    assert found["survey"].micro_batch is None
    rows = tensors.read(store.context.read("capture", units[0])[1])[f"rows:{FIRST}"]
    calls = [calls for calls, _ in _runs(store, denoiser, 0)]
    for step in range(2):
        places = _places(rows[step], [token for of in calls for token in of[step].inputs()[FIRST]])
        assert len(set(places)) == 6 and sum(place < TOKENS for place in places) == 3, "half of the rows of each"


def test_seconds_of_sampling_are_no_model_time_and_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that a forward pass moves by 10 and looking at an input by 1; nothing else takes time."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    denoiser = TwoLayerDenoiser()
    store, worker = _opened(tmp_path, denoiser, monkeypatch)
    worker("survey")
    forward, take = denoiser.transformer.forward, torch.Tensor.amax

    def slow(*args: Tensor) -> Tensor:
        now[0] += 10
        return forward(*args)

    def peak(x: Tensor, *more: Any) -> Tensor:
        now[0] += 1
        return take(x, *more)

    monkeypatch.setattr(denoiser.transformer, "forward", slow)
    monkeypatch.setattr(torch.Tensor, "amax", peak)
    worker("trajectory/001")
    found = {unit: m.seconds for unit, m in store.manifest("capture").markers().items()}
    run, *blocks = found["trajectory/001"], found["activations/000-001"], found["activations/001-001"]
    assert (run["model"], run["total"]) == (30, 30)
    assert [(block["model"], block["total"]) for block in blocks] == [(0, 2 * 2), (0, 2)], "two inputs at each step"


def test_at_least_one_row_of_each_call_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, worker = _opened(tmp_path, TwoLayerDenoiser(guided=True), monkeypatch, capture={"rows": 1, "block": 1})
    worker("survey")
    worker("trajectory/000")
    _, folder = store.context.read("capture", "activations/000-000")
    assert tensors.read(folder)[f"rows:{FIRST}"].shape == (2, 1, 16)


def test_a_network_that_returns_nan_is_refused_with_the_place_where_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = TwoLayerDenoiser()
    with torch.no_grad():
        denoiser.transformer.get_submodule("proj_out").bias[0] = float("nan")
    store, worker = _opened(tmp_path / "late", denoiser, monkeypatch)
    with pytest.raises(StageError, match=r"input of layer after the last block at step 0 \(timestep 1000\)"):
        _captured(store, worker)
    monkeypatch.setattr(two_layer_denoiser, "condition_of", lambda prompt: torch.full((8,), float("nan")))
    store, worker = _opened(tmp_path / "early", TwoLayerDenoiser(), monkeypatch)
    with pytest.raises(StageError, match=rf"input of layer {MODULATION} at step 0 .*; check the model"):
        _captured(store, worker)


def test_latents_that_change_size_over_a_run_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = TwoLayerDenoiser()
    monkeypatch.setattr(denoiser, "state", lambda call: [torch.zeros(2, 9 if call.step < 2 else 4)])
    with pytest.raises(StageError, match=r"\[\(2, 9\)\] at the first step and \[\(2, 4\)\] at step 2"):
        _captured(*_opened(tmp_path, denoiser, monkeypatch))


def test_an_input_that_is_not_finite_is_refused_with_its_layer_and_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two_layer_denoiser, "condition_of", lambda prompt: torch.tensor([float("inf")] + [0.0] * 7))
    _, worker = _opened(tmp_path, TwoLayerDenoiser(), monkeypatch)
    worker("survey")
    with pytest.raises(StageError, match=rf"input of layer {MODULATION} at step 0 \(timestep 1000\)"):
        worker("trajectory/000")
