"""Quantized weights: what is stored has the error that is reported."""

from __future__ import annotations

import pytest
import torch

from adatsq_pipe.stages.numerics import weight
from adatsq_pipe.stages.numerics.grid import weight_grid


def test_a_gaussian_weight_is_better_off_on_the_codebook() -> None:
    w = torch.randn(8, 512, generator=torch.Generator().manual_seed(0))
    gram = torch.eye(512, dtype=torch.float64)
    booked = weight.on_codebook(w, gram, bits=3)
    plain = weight.on_grid(w, gram, lambda w: weight_grid(w, bits=3, group=0, symmetric=False, clip=True))
    assert booked.error == pytest.approx(0.0345, rel=0.1) and booked.error < plain.error


def test_a_row_of_zeros_stays_one() -> None:
    w = torch.zeros(2, 16)
    w[1] = torch.randn(16, generator=torch.Generator().manual_seed(0))
    coded = weight.on_codebook(w, torch.eye(16, dtype=torch.float64), bits=4)
    values = coded.tensors["book"][coded.tensors["codes"].long()] * coded.tensors["scale"].float()
    assert values[0].abs().max() == 0
