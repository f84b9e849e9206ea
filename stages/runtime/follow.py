"""The hook by which a loaded model follows its timestep policy: before every call it sets each layer's bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY
from adatsq_pipe.stages.runtime.clock import nearest_step, timestep_of
from adatsq_pipe.stages.runtime.linear import QuantizedLinear, quantized_layers


class Follow:
    """Forward pre-hook of the denoiser. The step is the calibrated noise level nearest to the call's timestep, so other
    step counts and schedulers work; a batch of mixed timesteps takes the highest bits among them."""

    def __init__(self, timesteps: Sequence[float], layers: dict[str, QuantizedLinear], told: str) -> None:
        self.calibrated_T, self._told = torch.tensor(list(timesteps)), told
        self._layers = list(layers.values())
        self._bits: list[list[int]] = [layer.policy.tolist() for layer in self._layers]
        self._now: list[int] | None = None
        for layer, bits in zip(self._layers, self._bits, strict=True):
            rounded = {b < WEIGHT_ONLY for b in bits}
            layer.rounds = rounded.pop() if len(rounded) == 1 else None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        steps = nearest_step(timestep_of(module.forward, args, kwargs, self._told), self.calibrated_T)
        if steps != self._now:
            first, self._now = self._now is None, steps
            for layer, bits in zip(self._layers, self._bits, strict=True):
                if first or layer.spec.time_groups or layer.bits != max(bits[step] for step in steps):
                    layer.at(steps, bits)
        for layer in self._layers[:1]:
            if layer.shared is not None:
                layer.shared.clear()


def follow_policy(model: nn.Module, timesteps: Sequence[float], told: str = "") -> Follow:
    """Make `model` follow the policies in its quantized layers; `told` names the timestep among its arguments where no
    rule finds it. Returns the hook."""
    layers = quantized_layers(model)
    for name, layer in layers.items():
        if layer.policy.numel() != len(timesteps):
            raise ValueError(f"layer {name!r} has a policy of {layer.policy.numel()} steps, the model {len(timesteps)}")
    hook = Follow(timesteps, layers, told)
    model.register_forward_pre_hook(hook, with_kwargs=True)
    return hook


def stop_following(model: nn.Module) -> None:
    """Take the hook away again."""
    for key, hook in list(model._forward_pre_hooks.items()):
        if isinstance(hook, Follow):
            del model._forward_pre_hooks[key]
            model._forward_pre_hooks_with_kwargs.pop(key, None)
