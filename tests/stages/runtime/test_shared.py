"""Layers with the same input round it once; a changed input is never taken for the old one."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import Tensor

from adatsq_pipe.stages.runtime.shared import SharedInput


class Rounding:
    """Stands for a layer's rounding; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        return self.calls


def test_the_same_input_and_key_are_rounded_once() -> None:
    shared, rounding, x = SharedInput(), Rounding(), torch.ones(2)
    assert [shared.rounded(x, "4 bits", rounding) for _ in range(3)] == [1, 1, 1]


def test_another_key_is_rounded_for_itself_and_both_are_kept() -> None:
    shared, rounding, x = SharedInput(), Rounding(), torch.ones(2)
    assert [shared.rounded(x, key, rounding) for key in (3, 4, 3, 4)] == [1, 2, 1, 2]


def test_an_equal_input_that_is_another_tensor_is_rounded_again() -> None:
    shared, rounding, x = SharedInput(), Rounding(), torch.ones(2)
    assert [shared.rounded(y, 4, rounding) for y in (x, x.clone(), x)] == [1, 2, 3]


def test_an_input_changed_in_place_is_rounded_again() -> None:
    shared, rounding, x = SharedInput(), Rounding(), torch.ones(2)
    shared.rounded(x, 4, rounding)
    x.mul_(2)
    assert shared.rounded(x, 4, rounding) == 2
    assert shared.rounded(x, 4, rounding) == 2


def test_none_is_a_result_like_any_other() -> None:
    shared, calls, x = SharedInput(), list[int](), torch.ones(2)
    for _ in range(2):
        shared.rounded(x, 4, lambda: calls.append(1))
    assert calls == [1]


def test_clear_forgets_and_frees_the_input_and_its_results() -> None:
    shared, x = SharedInput(), torch.ones(2)
    rounded: Tensor = shared.rounded(x, 4, lambda: torch.zeros(2))
    alive = weakref.ref(x), weakref.ref(rounded)
    shared.clear()
    del x, rounded
    gc.collect()
    assert [each() for each in alive] == [None, None]
