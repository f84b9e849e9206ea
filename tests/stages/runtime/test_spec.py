"""LayerSpec: the tensors that its parts ask for, its JSON form, and the parts that it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from adatsq_pipe.stages.runtime.spec import FORMAT, LayerSpec
from tests.support.quantized_layers import PARTS, spec_with

U8, I32, BF16, F32 = torch.uint8, torch.int32, torch.bfloat16, torch.float32
BASE = {"codes": ((6, 16), U8), "scale": ((6, 1), BF16), "policy": ((5,), U8), "zero": ((6, 1), U8)}
"""32 inputs, 6 outputs, 5 steps, 4 bits a code."""


@pytest.mark.parametrize(
    ("parts", "changes"),
    [
        ({}, {}),
        ({"block": 8, "symmetric_activations": True, "activation_group": 8}, {}),
        ({"weight_bits": 3}, {"codes": ((6, 12), U8)}),
        ({"group": 8}, {"scale": ((6, 4), BF16), "zero": ((6, 4), U8)}),
        ({"permuted": True}, {"order": ((32,), I32)}),
        ({"smoothed": True}, {"smooth": ((32,), BF16)}),
        ({"rank": 2}, {"down": ((2, 32), BF16), "up": ((6, 2), BF16)}),
        ({"codebook": True}, {"book": ((16,), F32), "zero": None}),
        ({"activation_codebook": True}, {}),
        ({"time_groups": 3}, {"time_group": ((5,), U8), "step_scale": ((3,), F32), "step_zero": ((3,), F32)}),
    ],
)
def test_each_part_asks_for_its_tensors(parts: dict[str, Any], changes: dict[str, Any]) -> None:
    wanted = {name: shape for name, shape in (BASE | changes).items() if shape is not None}
    assert spec_with(**parts).tensors(32, 6, 5) == wanted


def test_a_row_of_codes_takes_whole_bytes() -> None:
    assert spec_with(weight_bits=3).tensors(33, 6, 1)["codes"] == ((6, 15), U8)


def test_the_names_of_stored_tensors_are_those_of_format_2() -> None:
    """They are in every model folder: another name is another format."""
    every = spec_with(permuted=True, smoothed=True, rank=1, time_groups=2).tensors(32, 6, 5)
    assert FORMAT == 2
    assert list(every) == [
        *("codes", "scale", "policy", "zero", "order", "smooth", "down", "up"),
        *("time_group", "step_scale", "step_zero"),
    ]


@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "+".join(parts) or "plain")
def test_a_spec_survives_json(parts: dict[str, Any]) -> None:
    spec = spec_with(**parts)
    assert LayerSpec(**json.loads(json.dumps(spec.plain()))) == spec


def test_json_holds_what_has_no_default_and_what_differs_from_it() -> None:
    assert spec_with(rank=2, permuted=False).plain() == {
        "weight_bits": 4,
        "group": 0,
        "block": 1,
        "symmetric_activations": False,
        "rank": 2,
    }


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"weight_bits": 7}, "7 bits cannot be packed"),
        ({"weight_bits": 1}, "1 bits cannot be packed"),
        ({"block": 3}, "no power of two"),
        ({"block": 0}, "no power of two"),
        ({"number_format": "fp4"}, "number_format 'fp4' is unknown; it is nvfp4 or mxfp4"),
        ({"number_format": "nvfp4"}, "4-bit codes of a codebook"),
        ({"number_format": "nvfp4", "codebook": True, "weight_bits": 3}, "4-bit codes of a codebook"),
        ({"number_format": "mxfp4", "codebook": True, "activation_group": 8}, "its own blocks"),
        ({"block": 8, "regular": True}, "block of 8 is no power of four"),
        ({"block": 2, "regular": True}, "block of 2 is no power of four"),
        ({"block": 16, "regular": True, "dual": True}, "not regular"),
        ({"block": 1, "dual": True}, "blocks of 2 or more"),
        ({"activation_group": 8, "time_groups": 2}, "one scale for all"),
        ({"regions": True}, "needs time_groups"),
        ({"activation_codebook": True, "activation_group": 8}, "no group"),
        ({"activation_codebook": True, "time_groups": 2}, "no time_groups"),
    ],
)
def test_parts_that_exclude_each_other_are_refused(parts: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spec_with(**parts)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"group": 5}, "^group 5 does not divide the input width 32"),
        ({"activation_group": 5}, "activation_group 5 does not divide"),
        ({"block": 64}, "block 64 does not divide"),
        ({"rank": 7}, "rank 7 is above the layer's width 6"),
    ],
)
def test_parts_that_do_not_fit_the_layer_are_refused(parts: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spec_with(**parts).tensors(32, 6, 1)
    spec_with(rank=6, group=32, block=32).tensors(32, 6, 1)
