"""The readers of captured inputs give each step its own rows, of all batches in their order, and its own peaks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adatsq_pipe.stages.calibration import inputs
from tests.support.made_context import FIRST, MODULATION
from tests.support.made_store import make_store
from tests.support.mapping import MAPS, file_of

CALLS = {"one call a step": (0, 1, 2), "two calls a step": (0, 0, 1, 1, 2, 2), "as it comes": (0, 0, 1, 2, 2, 3)}


@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("block", [1, 2, 5])
def test_each_step_has_the_rows_of_its_calls_batch_after_batch(
    tmp_path: Path, calls: tuple[int, ...], block: int
) -> None:
    store = make_store(tmp_path, calls=calls, capture={"block": block})
    store.write_survey()
    store.write_activations()
    for name in (FIRST, MODULATION):
        found = list(inputs.rows(store.context, name))
        assert [step for step, _ in found] == list(range(store.steps))
        for step, x in found:
            wanted = [
                store.rows[name][batch, call, row]
                for batch in range(store.batches)
                for call in range(len(calls))
                if calls[call] == step
                for row in range(store.rows[name].shape[2])
            ]
            assert torch.equal(x, torch.stack(wanted))


@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
def test_a_peak_is_the_largest_of_all_batches_and_calls_of_its_step(tmp_path: Path, calls: tuple[int, ...]) -> None:
    store = make_store(tmp_path, calls=calls)
    store.write_survey()
    store.write_activations()
    found = inputs.peaks(store.context, FIRST)
    assert found.shape == (store.steps, 16)
    for step in range(store.steps):
        for channel in range(16):
            here = [
                store.peaks[FIRST][batch, call, channel].item()
                for batch in range(store.batches)
                for call in range(len(calls))
                if calls[call] == step
            ]
            assert found[step, channel].item() == max(here)


def test_peaks_are_those_of_all_tokens_not_of_the_sampled_rows(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.write_survey()
    store.write_activations()
    found = inputs.peaks(store.context, FIRST)
    for step, x in inputs.rows(store.context, FIRST):
        assert (found[step] > x.abs().amax(0)).all()


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux says what is mapped")
def test_the_rows_of_a_gram_matrix_lie_in_the_files_of_the_capture(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.write_survey()
    store.write_activations()
    found = inputs.row_parts(store.context, FIRST)
    assert len(found) == store.steps and all(len(parts) == store.batches for parts in found)
    for step, parts in enumerate(found):
        for batch, part in enumerate(parts):
            assert torch.equal(part, store.rows[FIRST][batch, step])
            assert "/capture/" in file_of(part)[1]
