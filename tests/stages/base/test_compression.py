"""Sizes in words: what is larger is not called smaller by less than one."""

from __future__ import annotations

import pytest

from adatsq_pipe.stages.base.compression import resized, transformer_line


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [(760, 200, "3.80x smaller"), (100, 160, "1.60x larger"), (62, 100, "1.61x larger"), (5, 5, "1.00x smaller")],
)
def test_a_ratio_of_sizes_says_which_way_it_goes(before: int, after: int, words: str) -> None:
    assert resized(before / after) == words


def test_a_card_names_the_direction_of_the_layers_where_it_is_another() -> None:
    assert transformer_line(2.5, 3.85) == "2.50 times smaller than in bfloat16 (its quantized layers 3.85 times)"
    assert transformer_line(0.5, 0.8) == "2.00 times larger than in bfloat16 (its quantized layers 1.25 times)"
    assert transformer_line(1.25, 0.5) == "1.25 times smaller than in bfloat16 (its quantized layers 2.00 times larger)"
