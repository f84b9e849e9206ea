"""The fake denoiser's mathematics once more, in plain torch and one sample at a time, for tests to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.support.made_context import FIRST, MODULATION, SECOND, TOKENS
from tests.support.two_layer_denoiser import condition_of


@dataclass(frozen=True)
class OneCall:
    """What one sample's call is made with: `x` [TOKENS, WIDTH], the timestep and the condition [CONDITION]."""

    x: Tensor
    time: float
    condition: Tensor

    def inputs(self) -> dict[str, Tensor]:
        """The input rows of every layer, [tokens, in]."""
        hidden = self.x * (1 + self.time / 1000)
        return {FIRST: hidden, SECOND: hidden, MODULATION: self.condition[None]}


def output_of(
    net: nn.Module, call: OneCall, added: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """(the network's output [TOKENS, WIDTH], every layer's output [tokens, out]) for one sample.

    Weights are leaves of their own, in `net`; `added` [tokens, out] is put on top of the outputs of layers.
    """
    state = dict(net.named_parameters())
    made = {name: x @ state[f"{name}.weight"].T + state[f"{name}.bias"] for name, x in call.inputs().items()}
    for name, more in (added or {}).items():
        made[name] = made[name] + more
    both = torch.cat([made[FIRST], made[SECOND]], 1)
    half = both.shape[1] // 2
    block = call.x * (1 + call.time / 1000) + both[:, :half] * torch.tanh(both[:, half:] + made[MODULATION])
    return block @ state["proj_out.weight"].T + state["proj_out.bias"], made


def seed_of(data_seed: int, caption: int) -> int:
    """The seed of a calibration caption's noise."""
    return 1_000_003 * data_seed + caption


def run_of(
    net: nn.Module, prompt: str, seed: int, *, steps: int = 3, guided: bool = False
) -> tuple[list[OneCall], Tensor]:
    """(the calls of one sample's whole run in their order, the latents it ends with [TOKENS, WIDTH])."""
    x = torch.randn(TOKENS, 16, generator=torch.Generator().manual_seed(seed))
    calls = list[OneCall]()
    with torch.no_grad():
        for step in range(steps):
            time = 1000.0 - 300 * step
            calls.append(OneCall(x, time, condition_of(prompt)))
            v, _ = output_of(net, calls[-1])
            if guided:
                calls.append(OneCall(x, time, condition_of("")))
                without, _ = output_of(net, calls[-1])
                v = without + 2 * (v - without)
            x = x - v / steps
    return calls, x
