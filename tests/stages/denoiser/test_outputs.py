"""Outputs of several calls as named tensors: stacked where calls are alike, else each by itself; both come back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adatsq_pipe.stages.denoiser.outputs import leaves, stacked, structure, unstacked


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        ([(torch.randn(2, 3),), (torch.randn(2, 3),)], ["output0"]),
        ([(torch.randn(2, 3), [torch.randn(4)])] * 2, ["output0", "output1"]),
        ([(torch.randn(4, 3),), (torch.randn(2, 3),)], ["output0.0", "output1.0"]),
        ([torch.randn(2), (torch.randn(2), torch.randn(1))], ["output0.0", "output1.0", "output1.1"]),
        ([(torch.randn(2),), (torch.randn(2).half(),)], ["output0.0", "output1.0"]),
    ],
)
def test_what_is_stored_comes_back(outputs: list[Any], names: list[str]) -> None:
    stored = stacked(outputs)
    assert list(stored) == names
    again = unstacked(stored, [structure(output) for output in outputs], "cpu")
    assert [structure(output) for output in again] == [structure(output) for output in outputs]
    got, put = ([leaf for output in each for leaf in leaves(output)] for each in (again, outputs))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(got, put, strict=True))
