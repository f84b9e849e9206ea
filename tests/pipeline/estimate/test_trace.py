"""A trace counts what a computation takes without computing a number: operations, bytes, what lives at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adatsq_pipe.pipeline.estimate.trace import cost_of, held_by


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def test_products_count_two_operations_a_pair_by_their_precision() -> None:
    x, w = _meta(5, 7), _meta(7, 11)
    assert cost_of(lambda: x @ w).flops == {"float32": 2 * 5 * 7 * 11}
    assert cost_of(lambda: x.double() @ w.double()).flops == {"float64": 2 * 5 * 7 * 11}
    assert cost_of(lambda: x.bfloat16() @ w.bfloat16()).flops == {"half": 2 * 5 * 7 * 11}


def test_attention_counts_both_products_and_keeps_no_scores() -> None:
    q, k = _meta(1, 2, 300, 8), _meta(1, 2, 500, 8)
    cost = cost_of(lambda: nn.functional.scaled_dot_product_attention(q, k, k))
    assert cost.flops == {"float32": 2 * 300 * 500 * (8 + 8) * 2}
    assert cost.peak == 4 * 2 * 300 * 8, "the output alone; scores would be 150 times that"


def test_traffic_is_what_is_read_and_written_and_views_are_free() -> None:
    x = _meta(1000)
    cost = cost_of(lambda: x.view(10, 100) + 1)
    assert (cost.traffic, cost.kernels, cost.flops) == (4 * 1000 * 2, 1, {})


def test_the_peak_is_what_lives_at_once_and_not_what_was_there_before() -> None:
    x = _meta(1000)

    def chain() -> Tensor:
        y = x + 1
        y = y + 1
        return y + 1

    assert cost_of(chain).peak == 2 * 4000, "one is read while the next is written"
    assert held_by(chain) == 4000


def test_what_a_backward_pass_needs_is_held() -> None:
    x = _meta(10, 100).requires_grad_()
    assert held_by(lambda: x.sigmoid().sigmoid().sigmoid()) == 3 * 4000
    with torch.no_grad():
        assert held_by(lambda: x.sigmoid().sigmoid().sigmoid()) == 4000


def test_costs_add_up_and_the_highest_peak_stays() -> None:
    x, y = _meta(4, 4), _meta(8, 8)
    one, other = cost_of(lambda: x @ x), cost_of(lambda: y @ y)
    both = one * 3 + other
    assert both.flops == {"float32": 3 * 128 + 1024} and both.total == 1408
    assert (both.peak, both.kernels) == (256, 4) and both.traffic == 3 * 192 + 768
