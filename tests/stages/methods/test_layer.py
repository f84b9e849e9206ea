"""Which parts a recipe gives a layer, and which layers it does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.survey import LayerInfo
from adatsq_pipe.stages.methods._layer import check_recipe, groups_of, incompatibility, largest_group, spec_of
from adatsq_pipe.stages.methods._recipe import resolve

TOKENS = {"name": "blocks.0.ff.net.2", "kind": "tokens", "in": 96, "out": 32}
CONDITIONING = {"name": "blocks.0.norm1.linear", "kind": "conditioning", "in": 96, "out": 192}


def _spec(row: dict[str, Any], group: int | None = None, **recipe: Any) -> dict[str, Any]:
    return spec_of(resolve(recipe), LayerInfo.from_plain(row), group=group).plain()


@pytest.mark.parametrize(
    ("width", "group", "size"),
    [(96, 64, 48), (96, 32, 32), (96, 0, 0), (96, 500, 96), (7, 5, 1), (10, 6, 5), (3072, 288, 256)],
)
def test_a_group_that_does_not_divide_the_width_stands_for_the_largest_divisor_below_it(
    width: int, group: int, size: int
) -> None:
    assert largest_group(width, group) == size


def test_the_rotation_is_the_largest_power_of_two_that_divides_the_width() -> None:
    plain = {"weight_bits": 4, "group": 0, "symmetric_activations": False}
    assert _spec(TOKENS, method="adatsq") == {**plain, "block": 32}
    assert _spec(TOKENS, method="adatsq", transform_block=16) == {**plain, "block": 16}
    assert _spec(TOKENS, method="rtn", transform_block=16) == {**plain, "block": 1}


def test_a_conditioning_layer_has_bits_and_groups_of_its_own_and_none_of_the_parts() -> None:
    recipe = {"conditioning_bits": 6, "conditioning_group": 48, "weight_bits": 3, "weight_group": 32}
    for method in ("adatsq", "orbitquant", "smoothquant", "svdquant"):
        spec = _spec(CONDITIONING, method=method, **recipe)
        assert spec == {"weight_bits": 6, "group": 48, "block": 1, "symmetric_activations": False}


def test_tokens_have_the_parts_of_their_recipe() -> None:
    plain = {"weight_bits": 4, "symmetric_activations": False, "block": 1}
    assert _spec(TOKENS, method="svdquant", weight_group=32, activation_group=16, rank=8) == {
        **plain, "group": 32, "activation_group": 16, "smoothed": True, "rank": 8,
    }  # fmt: skip
    assert _spec(TOKENS, method="orbitquant", transform_block=8) == {
        **plain, "group": 0, "block": 8, "permuted": True, "codebook": True, "activation_codebook": True,
    }  # fmt: skip
    assert _spec(TOKENS, method="quarot")["symmetric_activations"]
    assert _spec(TOKENS, method="tq_dit")["time_groups"] == 10
    assert "smoothed" not in _spec(TOKENS, method="smoothquant", smoothing_skip=("net.2",))
    assert _spec(TOKENS, method="smoothquant", smoothing_skip=("net.0",))["smoothed"]


def test_a_searched_group_is_that_of_the_weight_and_of_tokens() -> None:
    spec = _spec(TOKENS, group=16, method="q_dit")
    assert (spec["group"], spec["activation_group"]) == (16, 16)
    assert groups_of(resolve({"method": "q_dit"}), LayerInfo.from_plain(TOKENS)) == (96, 96)
    assert groups_of(resolve({"method": "q_dit", "conditioning_group": 64}), LayerInfo.from_plain(CONDITIONING)) == (
        48,
        0,
    )


@pytest.mark.parametrize(
    ("row", "recipe", "said"),
    [
        (TOKENS, {"weight_group": 64}, "weight_group 64 does not divide the input width 96; set recipe.weight_group"),
        (TOKENS, {"activation_group": 7}, "activation_group 7 does not divide the input width 96"),
        (CONDITIONING, {"conditioning_group": 64}, "conditioning_group 64 does not divide the input width 96"),
        (TOKENS, {"rank": 33}, "rank 33 is above the layer's width 32; lower recipe.rank"),
    ],
)
def test_a_misfit_names_the_layer_the_field_and_what_helps(row: Any, recipe: Any, said: str) -> None:
    found = incompatibility(resolve({"method": "rtn", **recipe}), LayerInfo.from_plain(row))
    assert found.startswith(f"layer {row['name']}: {said}")
    with pytest.raises(StageError) as refused:
        _spec(row, method="rtn", **recipe)
    assert str(refused.value) == found


@pytest.mark.parametrize(
    ("row", "recipe"),
    [
        (TOKENS, {"weight_group": 64, "group_fit": True}),
        (TOKENS, {"rank": 32}),
        (CONDITIONING, {"conditioning_group": 0, "rank": 500, "weight_group": 64}),
    ],
)
def test_what_fits_is_not_refused(row: Any, recipe: Any) -> None:
    assert incompatibility(resolve({"method": "rtn", **recipe}), LayerInfo.from_plain(row)) == ""


def test_a_model_is_refused_by_the_shapes_in_its_files(tmp_path: Path) -> None:
    """Layers outside blocks and tensors that are no matrices do not count; names tell conditioning layers."""
    (tmp_path / "transformer").mkdir()
    (tmp_path / "model_index.json").write_text('{"transformer": ["diffusers", "FluxTransformer2DModel"]}')
    (tmp_path / "transformer" / "config.json").write_text("{}")
    shapes = {
        "blocks.0.ff.weight": (32, 64), "blocks.0.norm1.linear.weight": (32, 96), "embed.weight": (32, 7),
        "blocks.0.norm.weight": (7,),
    }  # fmt: skip
    stored = {name: torch.zeros(shape) for name, shape in shapes.items()}
    save_file(stored, tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    check_recipe(resolve({"method": "rtn", "weight_group": 64, "conditioning_group": 96}), tmp_path)
    with pytest.raises(StageError, match=r"layer blocks.0.ff: weight_group 48 .* \(nothing was started\)"):
        check_recipe(resolve({"method": "rtn", "weight_group": 48, "conditioning_group": 96}), tmp_path)
    with pytest.raises(StageError, match=r"layer blocks.0.norm1.linear: conditioning_group 64 "):
        check_recipe(resolve({"method": "rtn", "conditioning_group": 64}), tmp_path)
