"""What the survey keeps of a first call, where a layer runs more than once in it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adatsq_pipe.stages.calibration.first_calls import FirstCalls
from adatsq_pipe.stages.denoiser.call import Call, CallPart

ROWS, TOKENS = 3, 10


class Twice(nn.Module):
    """`first` is fed the tokens, and once more at the end, as DiT does with its first block's embedder."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unused = (nn.Linear(4, 4) for _ in range(3))
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.first(self.second(self.first(x)))


def _call(x: Tensor) -> Call:
    return Call(args=(x,), kwargs={}, step=0, timestep=1000.0)


@torch.no_grad()
def test_a_layer_that_runs_twice_is_left_and_takes_no_part_in_the_draw_of_rows() -> None:
    net, x = Twice(), torch.randn(2, TOKENS, 4, generator=torch.Generator().manual_seed(0))
    linears = {name: layer for name, layer in net.named_children() if isinstance(layer, nn.Linear)}
    look = FirstCalls({"transformer": linears}, ROWS)
    part = CallPart(call=_call(x), place=0, share=Fraction(1))
    output = look.around(part, lambda: net(x))
    assert net.passes == 2 and torch.equal(output, net(x))
    look.around(part, lambda: net(x))
    assert net.passes == 4, "a later call is made once"
    found = look.survey("transformer", 2)
    assert (found.repeated, found.unused) == (("first",), ("unused",))
    assert [(layer.name, layer.input_of, layer.macs) for layer in found.layers] == [("second", "second", TOKENS * 16)]
    fed = net.first(x).flatten(0, 1)
    chosen = np.random.default_rng([0, 0, 0]).permutation(2 * TOKENS)[:ROWS]
    assert look.kept is not None and torch.equal(look.kept.output, output)
    rows, peak = look.kept.sampler.of("second", net.second)
    assert torch.equal(rows, fed[chosen.tolist()]) and torch.equal(peak, fed.abs().amax(0))


@torch.no_grad()
@pytest.mark.parametrize(
    ("known", "passes"), [(["first"], 1), ([], 2), (["second"], 2), (["first", "second"], 2), (["unused"], 2)]
)
def test_what_is_known_to_repeat_saves_a_pass_and_changes_nothing(known: list[str], passes: int) -> None:
    """A family that is wrong costs a pass."""
    net, x = Twice(), torch.randn(2, TOKENS, 4, generator=torch.Generator().manual_seed(0))
    linears = {name: layer for name, layer in net.named_children() if isinstance(layer, nn.Linear)}
    part = CallPart(call=_call(x), place=0, share=Fraction(1))
    looks = [FirstCalls({"transformer": linears}, ROWS, {"transformer": each}) for each in (known, [])]
    counts = []
    for look in looks:
        before = net.passes
        look.around(part, lambda: net(x))
        counts.append(net.passes - before)
    assert counts == [passes, 2]
    one, other = looks
    assert one.survey("transformer", 2) == other.survey("transformer", 2)
    assert one.kept is not None and other.kept is not None
    (rows, peak), (wanted, peaks) = (look.kept.sampler.of("second", net.second) for look in (one, other) if look.kept)
    assert torch.equal(rows, wanted) and torch.equal(peak, peaks)


@torch.no_grad()
def test_a_call_in_parts_or_with_an_output_that_is_not_finite_is_not_kept() -> None:
    for share, scale in ((Fraction(1, 2), 1.0), (Fraction(1), float("inf"))):
        net, x = Twice(), torch.ones(2, TOKENS, 4)
        look = FirstCalls({"transformer": {"second": net.second}}, ROWS)
        look.around(CallPart(call=_call(x), place=0, share=share), lambda net=net, x=x, s=scale: net(x) * s)
        assert look.kept is None
        assert look.survey("transformer", 4).layers[0].macs == 2 * TOKENS * 16 // (4 * share)
