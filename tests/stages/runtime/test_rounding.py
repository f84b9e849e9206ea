"""A large input is rounded in chunks of rows: the same values as row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.runtime import rounding
from adatsq_pipe.stages.runtime.rounding import RoundedInput, round_by_rows
from tests.support.quantized_layers import layer_of, output_by_hand, random_tensors, spec_with

STATIC = torch.tensor(0.5)


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows in each call of the work, with chunks of 32 elements."""
    monkeypatch.setattr(rounding, "_CHUNK", 32)
    return []


def test_every_row_is_rounded_once_and_stays_in_its_place(chunks: list[int]) -> None:
    x = torch.arange(3 * 7 * 8.0).reshape(3, 7, 8)

    def work(rows: Tensor) -> RoundedInput:
        chunks.append(len(rows))
        return RoundedInput(rows.int(), rows.sum(-1, keepdim=True), rows + 0.5)

    rounded = round_by_rows(work, x)
    assert chunks == [4, 4, 4, 4, 4, 1]
    assert rounded.scale is not None and rounded.unrounded is not None
    assert rounded.values.dtype == torch.int32 and torch.equal(rounded.values, x.int())
    assert rounded.scale.shape == (3, 7, 1) and torch.equal(rounded.scale[..., 0], x.sum(-1))
    assert torch.equal(rounded.unrounded, x + 0.5)


@pytest.mark.parametrize("scale", [None, STATIC])
def test_what_is_the_same_for_every_row_is_not_repeated(scale: Tensor | None, chunks: list[int]) -> None:
    rounded = round_by_rows(lambda rows: RoundedInput(rows * 2, scale, None), torch.ones(20, 8))
    assert rounded.scale is scale and rounded.unrounded is None and rounded.values.shape == (20, 8)


def test_a_small_input_goes_through_whole(chunks: list[int]) -> None:
    def work(rows: Tensor) -> RoundedInput:
        chunks.append(rows.ndim)
        return RoundedInput(rows, None, None)

    x = torch.ones(2, 4, 8)
    assert round_by_rows(work, x).values is x and chunks == [3]
    assert round_by_rows(work, torch.ones(0, 4, 8)).values.shape == (0, 4, 8)


@pytest.mark.parametrize("execution", ["simulate", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts", [{}, {"rank": 2, "block": 8}, {"time_groups": 2}])
def test_a_layer_gives_the_same_in_chunks(
    parts: dict[str, Any], dtype: torch.dtype, execution: str, chunks: list[int]
) -> None:
    spec = spec_with(**parts)
    made = random_tensors(spec, 32, 6, 3)
    layer = layer_of(spec, made)
    assert layer.bias is not None
    bias = layer.bias.to(dtype)
    layer.bias.data = bias.data
    layer.set_step(2, [3, 16, 8])
    layer.execution = execution
    x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(2)).to(dtype)
    wanted = output_by_hand(spec, made, bias, x.reshape(15, 32), bits=8, group=1).reshape(3, 5, 6)
    within = 1e-5 if dtype == torch.float32 else 0.012
    assert (layer(x).double() - wanted).norm() <= within * wanted.norm()
