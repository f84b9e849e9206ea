"""The fake denoiser with solved weights and rounded activations, in plain torch and one sample at a time."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tests.support.made_context import FIRST, MODULATION, SECOND
from tests.support.made_store import MadeStore
from tests.support.plain_network import OneCall, output_of
from tests.support.slow_math import token_rounded
from tests.support.two_layer_denoiser import TwoLayerDenoiser, condition_of

ORDER = (FIRST, SECOND, MODULATION)


def full_precision(store: MadeStore, denoiser: TwoLayerDenoiser) -> nn.Module:
    """Put the store's weights into every part of the denoiser; a copy of the first part as it then is."""
    for part in denoiser.parts.values():
        for name, weight in store.weights.items():
            part.get_submodule(name).weight.data.copy_(weight)
    return copy.deepcopy(next(iter(denoiser.parts.values())))


def with_weights(net: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `net` with other weights."""
    made = copy.deepcopy(net)
    for name, weight in weights.items():
        made.get_submodule(name).weight.data.copy_(weight)  # type: ignore[operator, union-attr]
    return made


def rounded_output(net: nn.Module, call: OneCall, bits: Sequence[int]) -> Tensor:
    """The network's output with the input of every layer rounded to its bits, in ORDER; 16 = not rounded."""
    state, added = dict(net.named_parameters()), {}
    for name, width in zip(ORDER, bits, strict=True):
        x = call.inputs()[name]
        if width != 16:
            added[name] = (token_rounded(x, width).float() - x) @ state[f"{name}.weight"].T
    with torch.no_grad():
        return output_of(net, call, added)[0]


def step_of(
    net: nn.Module, x: Tensor, step: int, prompt: str, bits: Sequence[int], *, steps: int = 3, guided: bool = False
) -> tuple[list[Tensor], Tensor]:
    """(outputs of the step's calls, the latents after it) from the latents `x` of one sample."""
    time = 1000.0 - 300 * step
    outputs = [rounded_output(net, OneCall(x, time, condition_of(prompt)), bits)]
    v = outputs[0]
    if guided:
        outputs.append(rounded_output(net, OneCall(x, time, condition_of("")), bits))
        v = outputs[1] + 2 * (outputs[0] - outputs[1])
    return outputs, x - v / steps
