"""The policy hook: the bits of every layer at every call, looked up by hand; and what it does to shared inputs."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from adatsq_pipe.stages.runtime.linear import QuantizedLinear
from adatsq_pipe.stages.runtime.policy_hook import PolicyHook, attach_policy_hook, remove_policy_hook, set_bits
from adatsq_pipe.stages.runtime.shared import SharedInput
from tests.support.quantized_layers import random_layer, spec_with

TIMESTEPS = [1.0, 0.6, 0.2]
POLICIES = {"q": [3, 16, 8], "k": [8, 4, 4], "v": [16, 16, 16], "out": [4, 4, 4]}


class Denoiser(nn.Module):
    """Four layers of one input; records the bits of each at every call."""

    q: QuantizedLinear

    def __init__(self, policies: dict[str, list[int]] = POLICIES) -> None:
        super().__init__()
        self.calls: list[list[int]] = []
        shared = SharedInput()
        for seed, (name, policy) in enumerate(policies.items()):
            layer = random_layer(spec_with(), 16, 16, seed)
            layer.policy.copy_(torch.tensor(policy, dtype=torch.uint8))
            layer.shared = shared
            self.add_module(name, layer)

    def layers(self) -> list[QuantizedLinear]:
        return [layer for layer in self.children() if isinstance(layer, QuantizedLinear)]

    def forward(self, x: Tensor, timestep: Tensor, guidance: Tensor | None = None) -> Tensor:
        self.calls.append([layer.bits for layer in self.layers()])
        return torch.stack([layer(x) for layer in self.layers()])


def run(denoiser: Denoiser, *timesteps: list[float] | float) -> list[list[int]]:
    """The bits of the layers in a call at each of `timesteps`."""
    denoiser.calls.clear()
    for timestep in timesteps:
        denoiser(torch.ones(1, 16), timestep=torch.tensor(timestep))
    return denoiser.calls


def test_each_call_has_the_bits_of_its_step() -> None:
    denoiser = Denoiser()
    attach_policy_hook(denoiser, TIMESTEPS)
    assert run(denoiser, 1.0, 0.6, 0.2) == [[3, 8, 16, 4], [16, 4, 16, 4], [8, 4, 16, 4]]


def test_other_timesteps_take_the_bits_of_the_nearest_step_in_any_order() -> None:
    denoiser = Denoiser()
    attach_policy_hook(denoiser, TIMESTEPS)
    assert [row[0] for row in run(denoiser, 0.0, 0.39, 0.41, 0.79, 0.81, 5.0, 0.6, 0.6)] == [8, 8, 16, 16, 3, 3, 16, 16]


def test_tokens_of_a_given_frame_do_not_raise_the_bits() -> None:
    """They have the timestep 0, nearest to the last step, at every call."""
    denoiser = Denoiser()
    attach_policy_hook(denoiser, TIMESTEPS)
    assert run(denoiser, [0.0, 1.0], [0.0, 0.6], [0.0, 0.2]) == [[3, 8, 16, 4], [16, 4, 16, 4], [8, 4, 16, 4]]


def test_the_first_call_sets_the_bits_whatever_they_were() -> None:
    denoiser = Denoiser()
    set_bits(denoiser.layers(), [2, 2, 2, 2])
    attach_policy_hook(denoiser, TIMESTEPS)
    assert run(denoiser, 1.0) == [[3, 8, 16, 4]]


def test_several_denoisers_follow_their_own_policies() -> None:
    high, low = Denoiser(), Denoiser({"q": [2, 3, 4]})
    attach_policy_hook(high, TIMESTEPS)
    attach_policy_hook(low, [0.4, 0.2, 0.0])
    assert run(high, 1.0) == [[3, 8, 16, 4]]
    assert run(low, 0.0, 0.4) == [[4], [2]]
    assert [layer.bits for layer in high.layers()] == [3, 8, 16, 4]


def test_the_timestep_may_have_another_name() -> None:
    denoiser = Denoiser()
    attach_policy_hook(denoiser, TIMESTEPS, "guidance")
    denoiser(torch.ones(1, 16), timestep=torch.tensor(1.0), guidance=torch.tensor([0.2]))
    assert denoiser.calls == [[8, 4, 16, 4]]


def test_each_layer_knows_whether_it_rounds_at_every_step_at_none_or_at_some() -> None:
    denoiser = Denoiser()
    attach_policy_hook(denoiser, TIMESTEPS)
    assert [layer.rounds for layer in denoiser.layers()] == [None, True, False, True]


def test_a_calibrated_scale_changes_with_the_step_though_the_bits_do_not() -> None:
    denoiser = Denoiser({"q": [4, 4, 4]})
    layer = random_layer(spec_with(time_groups=2), 16, 16, 1)
    layer.policy.fill_(4)
    denoiser.q = layer
    attach_policy_hook(denoiser, TIMESTEPS)
    scales = []
    for timestep in (1.0, 0.6, 0.2, [0.6, 0.2], 1.0):
        run(denoiser, timestep)
        scales.append((float(layer.current_scale), float(layer.current_zero)))
    first, second = (float(layer.step_scale[0]), 2.0), (float(layer.step_scale[1]), 3.0)
    assert scales == [first, second, second, second, first]


def test_a_clipping_ratio_changes_with_the_step_though_the_bits_do_not() -> None:
    denoiser = Denoiser({"q": [4, 4, 4]})
    layer = random_layer(spec_with(clip_bins=2), 16, 16, 1)
    layer.policy.fill_(4)
    layer.clip_bin.copy_(torch.tensor([0, 1, 1]))
    layer.step_clip.copy_(torch.tensor([0.9, 0.5]))
    denoiser.q = layer
    attach_policy_hook(denoiser, TIMESTEPS)
    ratios = []
    for timestep in (1.0, 0.6, 0.2, 1.0):
        run(denoiser, timestep)
        ratios.append(float(layer.current_clip))
    assert ratios == pytest.approx([0.9, 0.5, 0.5, 0.9])


def test_a_shift_changes_with_the_step_though_the_bits_do_not() -> None:
    denoiser = Denoiser({"q": [4, 4, 4]})
    layer = random_layer(spec_with(shift_groups=2), 16, 16, 1)
    layer.policy.fill_(4)
    denoiser.q = layer
    attach_policy_hook(denoiser, TIMESTEPS)
    for timestep, group in ((1.0, 0), (0.6, 1), (0.2, 1), (1.0, 0)):
        run(denoiser, timestep)
        assert torch.equal(layer.current_shift, layer.shift[group].float())
        assert torch.equal(layer.current_output, layer.shift_output[group])


def test_a_policy_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="'q' has a policy of 3 steps, the model 2"):
        attach_policy_hook(Denoiser(), [1.0, 0.5])


def test_removing_the_hook_keeps_the_bits_and_other_hooks() -> None:
    denoiser, seen = Denoiser(), list[str]()
    denoiser.register_forward_pre_hook(lambda *_: seen.append("other"))
    hook = attach_policy_hook(denoiser, TIMESTEPS)
    assert isinstance(hook, PolicyHook) and hook in denoiser._forward_pre_hooks.values()
    run(denoiser, 1.0)
    remove_policy_hook(denoiser)
    assert run(denoiser, 0.2) == [[3, 8, 16, 4]]
    assert seen == ["other", "other"]


def test_set_bits_takes_one_number_for_each_layer() -> None:
    denoiser = Denoiser()
    set_bits(denoiser.layers(), (2, 3, 4, 16))
    assert [layer.bits for layer in denoiser.layers()] == [2, 3, 4, 16]
    assert [float(layer.qmax) for layer in denoiser.layers()] == [3, 7, 15, 65535]
    with pytest.raises(ValueError, match="shorter"):
        set_bits(denoiser.layers(), (2, 3))


def test_an_input_overwritten_behind_autograd_is_rounded_again_in_the_next_call() -> None:
    """Writing through `.data` raises no version counter: only dropping the shared input at each call notices."""
    denoiser, x = Denoiser(), torch.linspace(-1, 1, 16).reshape(1, 16)
    attach_policy_hook(denoiser, TIMESTEPS)
    before = denoiser(x, timestep=torch.tensor(0.2))
    x.data.mul_(-2)
    after = denoiser(x, timestep=torch.tensor(0.2))
    fresh = denoiser(x.clone(), timestep=torch.tensor(0.2))
    assert torch.equal(after, fresh) and not torch.allclose(after, before)


@pytest.mark.parametrize("by", ["the hook", "set_bits"])
def test_the_last_input_is_freed_when_bits_are_set(by: str) -> None:
    denoiser = Denoiser()
    hook = attach_policy_hook(denoiser, TIMESTEPS)
    x = torch.ones(1, 16)
    denoiser(x, timestep=torch.tensor(1.0))
    alive = weakref.ref(x)
    del x
    assert alive() is not None
    if by == "set_bits":
        set_bits(denoiser.layers(), [4] * 4)
    else:
        hook(denoiser, (torch.ones(1, 16),), {"timestep": torch.tensor(1.0)})
    gc.collect()
    assert alive() is None


def test_an_empty_policy_and_bits_that_are_no_width_are_refused_before_any_call() -> None:
    denoiser = Denoiser()
    for layer in denoiser.layers():
        layer.policy = torch.zeros(0, dtype=torch.uint8)
    with pytest.raises(ValueError, match="layer 'q' has an empty policy"):
        attach_policy_hook(denoiser, [])
    for bits in (0, 1, 17, 255):
        with pytest.raises(ValueError, match=f"layer 'k' has a policy of {bits} bits; bits lie in 2..16"):
            attach_policy_hook(Denoiser({**POLICIES, "k": [8, bits, 4]}), TIMESTEPS)
