"""How the search's work is cut: by the settings alone; and a slice's captions give on their own what was recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adatsq_pipe.stages.allocation import batch_slices
from adatsq_pipe.stages.allocation.batch_slices import BatchSlice
from adatsq_pipe.stages.allocation.rollout import SliceReference, latents_of
from adatsq_pipe.stages.allocation.trellis import SearchSettings
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.settings import DataSettings
from adatsq_pipe.stages.denoiser.conditions import Conditions
from adatsq_pipe.stages.denoiser.denoiser import Denoiser
from adatsq_pipe.stages.denoiser.outputs import of_samples
from tests.conftest import FAMILIES


def _data(captions: int, batch: int) -> DataSettings:
    return DataSettings(prompts=tuple(f"caption {i}" for i in range(captions)), batch=batch)


def _bounds(slices: list[BatchSlice]) -> list[tuple[int, int, int, int]]:
    return [(p.batch, p.start, p.stop, p.of) for p in slices]


def test_by_default_a_batch_is_one_unit_and_rollouts_take_the_next() -> None:
    data, settings = _data(19, 8), SearchSettings()
    assert _bounds(BatchSlice.for_trellis(data, settings)) == [(0, 0, 8, 8)]
    assert _bounds(BatchSlice.for_rollouts(data, settings)) == [(1, 0, 8, 8)]


def test_batches_are_cut_and_rollouts_run_over_as_many() -> None:
    data, settings = _data(19, 8), SearchSettings(batches=2, samples=3, rollout_prompts=12)
    cuts = [(0, 3), (3, 6), (6, 8)]
    assert _bounds(BatchSlice.for_trellis(data, settings)) == [(b, i, j, 8) for b in (0, 1) for i, j in cuts]
    assert _bounds(BatchSlice.for_rollouts(data, settings)) == [(2, 0, 3, 3)], "what is left: three captions"
    alone = SearchSettings(batches=3, samples=4, rollout_prompts=10)
    assert _bounds(BatchSlice.for_rollouts(data, alone)) == [(0, 0, 4, 8), (0, 4, 8, 8), (1, 0, 2, 8)], "none is left"


def test_a_level_of_the_default_beam_fills_32_workers_with_one_caption_a_unit() -> None:
    parts = BatchSlice.for_trellis(_data(32, 8), SearchSettings(batches=2, samples=1))
    paths = [(kept, candidate) for kept in range(2) for candidate in range(3)]
    keys = batch_slices.keys_of("path", paths, parts)
    assert len(keys) == len(set(keys.values())) == 96
    assert {batch_slices.read_key(key) for key in keys} == {("path", p, i) for p in paths for i in range(16)}


def test_keys_go_slice_by_slice_and_alternate_between_the_paths_parents() -> None:
    parts = BatchSlice.for_trellis(_data(2, 2), SearchSettings(samples=1))
    keys = batch_slices.keys_of("path", [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)], parts)
    order = ["0.0", "1.0", "0.1", "1.1", "1.2"]
    assert list(keys) == [f"path/{path}/{place}" for place in (0, 1) for path in order]
    assert keys["path/1.0/1"] == batch_slices.unit_name("path", (1, 0), 1)


def test_the_weighted_mean_counts_every_caption_once_and_sums_in_order() -> None:
    parts = [BatchSlice(batch=0, start=0, stop=2, of=3), BatchSlice(batch=0, start=2, stop=3, of=3)]
    assert batch_slices.weighted_mean({1: 0.4, 0: 0.1}, parts) == (0.1 * 2 + 0.4) / 3
    assert batch_slices.weighted_mean({0: 0.1}, parts[:1]) == 0.1, "one slice's error is the error, to the last bit"


def test_default_settings_leave_the_search_identity_unchanged() -> None:
    assert not {"batches", "samples"} & set(SearchSettings().identity())
    assert SearchSettings(samples=2).identity()["samples"] == 2


@pytest.mark.parametrize("name", FAMILIES)
def test_a_slice_reproduces_its_share_of_the_recorded_batch(name: str, family: Callable[[str], Path]) -> None:
    call = json.loads((family(name) / "sampling.json").read_text())["call"]
    denoiser = Denoiser(str(family(name)), dtype="float32", device="cpu", call=call)
    prompts = ("207", "3", "8") if name == "dit" else ("a red circle", "a blue square above a cross", "a white cross")
    batch = Conditions(prompts=prompts, seeds=(5, 6, 7))
    run = denoiser.record(batch)
    first = SliceReference(denoiser, BatchSlice(batch=0, start=0, stop=2, of=3), batch, run)
    last = SliceReference(denoiser, BatchSlice(batch=0, start=2, stop=3, of=3), batch, run)
    assert torch.equal(torch.cat([first.latents, last.latents]), run.latents)
    assert [len(g.captions.prompts) for g in (first, last)] == [2, 1] and len(last.states) == run.steps[-1] + 2
    others = replace(run, latents=run.latents.flip(0))
    with pytest.raises(StageError, match=r"captions 0 to 1 of a batch of 3 .* search.samples=0"):
        SliceReference(denoiser, BatchSlice(batch=0, start=0, stop=2, of=3), batch, others)


def test_final_latents_are_cut_by_sample_frames_and_all() -> None:
    frames = torch.arange(6.0)
    assert latents_of(BatchSlice(batch=0, start=1, stop=3, of=3), frames).tolist() == [2, 3, 4, 5]
    assert latents_of(BatchSlice(batch=0, start=0, stop=3, of=3), frames) is frames


def test_guided_halves_and_lists_are_cut_by_sample() -> None:
    both = torch.arange(6.0).reshape(6, 1)
    assert of_samples(both, 3, 1, 2).flatten().tolist() == [1, 4]
    assert [x.item() for x in of_samples(list(both), 3, 0, 2)] == [0, 1, 3, 4]
    assert of_samples((both,), 2, 0, 1)[0].flatten().tolist() == [0, 2, 4]
    with pytest.raises(StageError, match=r"shape \[6, 1\] for 4 samples"):
        of_samples(both, 4, 0, 1)
