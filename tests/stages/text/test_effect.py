"""The effect on embeddings: relative error and cosines, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adatsq_pipe.stages.text.effect import effects_of, units_of
from adatsq_pipe.stages.text.effect_worker import differ, distance
from tests.support.made_store import make_store


def test_relative_error_and_cosines_over_all_units(tmp_path: Path) -> None:
    made = make_store(tmp_path, evaluate={"prompts": ["a", "b", "c"], "batch": 2, "seeds": 2}).context
    context = replace(made, fingerprints={**made.fingerprints, "text_effect": "8" * 64})
    assert units_of(context) == ["draw/000", "draw/001"], "the batches with the first draw of each caption"
    manifest = context.manifest("text_effect")
    pairs = [
        (torch.tensor([[[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]]), torch.tensor([[[1.0, 1.0], [0.0, 2.0], [0.0, 0.5]]])),
        (torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[-3.0, -4.0]]])),
    ]
    for unit, (before, after) in zip(units_of(context), pairs, strict=True):
        manifest.open_unit(unit)
        manifest.commit(unit, value={"states": distance([before], [after])})
    (found,) = effects_of(context)
    squared_error, squared = 1 + 0.25 + 100, 1 + 4 + 25
    assert found.argument == "states" and found.vectors == 3, "a vector of zeros has no direction"
    assert found.relative_error == pytest.approx(math.sqrt(squared_error / squared))
    assert found.cosine == pytest.approx((1 / math.sqrt(2) + 1 - 1) / 3) and found.least_cosine == pytest.approx(-1)


def test_what_does_not_depend_on_the_text_is_no_embedding() -> None:
    a, b = torch.ones(2, 2), torch.zeros(2, 2)
    assert not differ([a], [a.clone()]) and differ([a, a], [a, b]) and not differ([], [])
