"""The policy hook: before every call of the denoiser it sets the activation bits of each quantized layer.

Nothing else sets a layer's bits: whoever wants other bits than the model's policy calls `set_bits`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MethodType

import torch
from torch import nn

from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY
from adatsq_pipe.stages.runtime.clock import nearest_step, timestep_argument, timestep_of
from adatsq_pipe.stages.runtime.linear import QuantizedLinear
from adatsq_pipe.stages.runtime.model import quantized_layers


def set_bits(layers: Iterable[QuantizedLinear], row: Iterable[int]) -> None:
    """Set the activation bits of `layers`, one number of `row` each, and drop the rounded input that they share."""
    for layer, bits in zip(layers, row, strict=True):
        layer.bits = bits
        drop_shared_input(layer)


def drop_shared_input(layer: QuantizedLinear) -> None:
    """Forget the rounded input that this layer shares with others."""
    if layer.shared is not None:
        layer.shared.clear()


class PolicyHook:
    """Forward pre-hook of the denoiser: finds the step of a call and sets each layer's bits to those of its policy.

    The step is the calibrated timestep nearest to the call's, so other step counts and schedulers work. A call with
    several timesteps (of tokens, frames or samples) has the step of the noisiest: that of the tokens being denoised.
    """

    def __init__(
        self, timesteps: Sequence[float], layers: Mapping[str, QuantizedLinear], timestep_name: str = ""
    ) -> None:
        self.calibrated_T = torch.tensor(list(timesteps))
        self._timestep_name = timestep_name
        self._layers = list(layers.values())
        self._policies: list[list[int]] = [layer.policy.tolist() for layer in self._layers]
        self._step: int | None = None
        for layer, policy in zip(self._layers, self._policies, strict=True):
            rounded = {bits < WEIGHT_ONLY for bits in policy}
            layer.rounds = rounded.pop() if len(rounded) == 1 else None

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        timestep = timestep_of(_own_forward(module, self._timestep_name), args, kwargs, self._timestep_name)
        step = nearest_step(timestep, self.calibrated_T)
        if step != self._step:
            first, self._step = self._step is None, step
            for layer, policy in zip(self._layers, self._policies, strict=True):
                if first or len(layer.step_buffers) > 1 or layer.bits != policy[step]:
                    layer.set_step(step, policy)
        for layer in self._layers[:1]:
            drop_shared_input(layer)


def _own_forward(module: nn.Module, timestep_name: str) -> Callable[..., object]:
    """The forward of the module's class, if it has the timestep among its arguments, else the one set on the module.

    Caches, profilers and offloading replace `module.forward` by a function of (*args, **kwargs); calls stay the same.
    """
    own: Callable[..., object] = MethodType(type(module).forward, module)
    return own if timestep_argument(own, timestep_name) is not None else module.forward


def attach_policy_hook(model: nn.Module, timesteps: Sequence[float], timestep_name: str = "") -> PolicyHook:
    """Make `model` follow the policies in its quantized layers; returns the hook.

    `timesteps` are the calibrated ones, in the denoiser's own unit. `timestep_name` names the timestep among the
    arguments of `model.forward` where it has none of the usual names. Raises ValueError if a policy has another number
    of steps, none at all, or bits that are no width.
    """
    layers = quantized_layers(model)
    for name, layer in layers.items():
        if layer.policy.numel() != len(timesteps):
            raise ValueError(f"layer {name!r} has a policy of {layer.policy.numel()} steps, the model {len(timesteps)}")
        if not layer.policy.numel():
            raise ValueError(f"layer {name!r} has an empty policy: there is no step to take its bits from")
        if layer.policy.device.type != "meta" and (wrong := _outside(layer.policy.tolist())):
            raise ValueError(f"layer {name!r} has a policy of {wrong[0]} bits; bits lie in 2..{WEIGHT_ONLY}")
    hook = PolicyHook(timesteps, layers, timestep_name)
    model.register_forward_pre_hook(hook, with_kwargs=True)
    return hook


def _outside(bits: Sequence[int]) -> list[int]:
    """Those of the numbers that are no bit-width of an activation."""
    return [width for width in bits if not 2 <= width <= WEIGHT_ONLY]


def remove_policy_hook(model: nn.Module) -> None:
    """Remove the policy hook of `model`; its layers keep the bits that they have."""
    for key, hook in list(model._forward_pre_hooks.items()):
        if isinstance(hook, PolicyHook):
            del model._forward_pre_hooks[key]
            model._forward_pre_hooks_with_kwargs.pop(key, None)
