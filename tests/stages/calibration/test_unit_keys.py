"""The names of calibration's units, as they are on disk."""

from __future__ import annotations

import pytest

from adatsq_pipe.stages.calibration.unit_keys import (
    BlockKey,
    gram_unit,
    read_block_key,
    read_gram_unit,
    read_trajectory_unit,
    trajectory_unit,
)


def test_units_of_a_block_name_the_block_before_the_batch() -> None:
    assert BlockKey(2, 17).activations == "activations/002-017"
    assert BlockKey(2, 17).scores == "scores/002-017"


@pytest.mark.parametrize("unit", ["activations/002-1017", "scores/002-1017"])
def test_a_block_and_its_batch_are_read_from_either_unit(unit: str) -> None:
    assert read_block_key(unit) == BlockKey(block=2, batch=1017)


def test_the_name_of_a_whole_stage_is_no_block() -> None:
    with pytest.raises(ValueError):
        read_block_key("survey")


def test_recorded_runs_are_named_by_batch() -> None:
    assert trajectory_unit(7) == "trajectory/007"
    assert read_trajectory_unit("trajectory/007") == 7


def test_gram_matrices_are_named_by_the_layer_that_owns_the_input() -> None:
    assert gram_unit("blocks.0.attn.to_q") == "gram/blocks.0.attn.to_q"
    assert read_gram_unit("gram/blocks.0.attn.to_q") == "blocks.0.attn.to_q"
