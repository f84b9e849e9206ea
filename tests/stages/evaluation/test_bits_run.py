"""The bits that a model runs at, counted by hand: over steps and rounded layers, whatever the number of calls."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adatsq_pipe.stages.denoiser.call import Call
from adatsq_pipe.stages.evaluation.bits_run import BitsRun
from adatsq_pipe.stages.runtime.policy_hook import set_bits
from tests.support.quantized_layers import random_layer, spec_with


def model(*policies: list[int]) -> nn.ModuleList:
    """Layers with these policies of two steps."""
    layers = nn.ModuleList()
    for seed, policy in enumerate(policies):
        layer = random_layer(spec_with(), 16, 16, seed)
        layer.policy = torch.tensor(policy, dtype=torch.uint8)
        layers.append(layer)
    return layers


def call(step: int, part: str = "transformer") -> Call:
    return Call(args=(), kwargs={}, step=step, timestep=0.0, part=part)


def test_layers_that_are_never_rounded_do_not_count() -> None:
    layers = model([3, 8], [4, 4], [16, 16])
    bits_run = BitsRun({"transformer": layers})
    for step, row in enumerate(([3, 4, 16], [8, 4, 16])):
        set_bits(layers, row)  # type: ignore[arg-type]
        bits_run.see(call(step))
    assert bits_run.mean == (3 + 4 + 8 + 4) / 4


def test_bits_other_than_the_policys_are_seen() -> None:
    layers = model([3, 8], [4, 4])
    bits_run = BitsRun({"transformer": layers})
    for step in (0, 1):
        set_bits(layers, [8, 4])  # type: ignore[arg-type]
        bits_run.see(call(step))
    assert bits_run.mean == 6


def test_a_step_counts_once_however_often_its_denoiser_is_called() -> None:
    layers = model([3, 8])
    bits_run = BitsRun({"transformer": layers})
    for step, bits in ((0, 3), (0, 3), (0, 3), (1, 8)):
        set_bits(layers, [bits])  # type: ignore[arg-type]
        bits_run.see(call(step))
    assert bits_run.mean == 5.5


def test_of_two_denoisers_each_counts_at_its_own_steps() -> None:
    early, late = model([3, 16], [4, 16]), model([16, 8])
    bits_run = BitsRun({"early": early, "late": late})
    set_bits(early, [3, 4])  # type: ignore[arg-type]
    bits_run.see(call(0, "early"))
    set_bits(late, [8])  # type: ignore[arg-type]
    bits_run.see(call(1, "late"))
    assert bits_run.mean == 5


@pytest.mark.parametrize("layers", [model(), model([16, 16])])
def test_a_model_that_rounds_nothing_has_no_mean(layers: nn.ModuleList) -> None:
    bits_run = BitsRun({"transformer": layers})
    bits_run.see(call(0))
    assert bits_run.mean is None
