"""The contract of every method that is found: a tiny run of it ends with a folder that draws."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.survey import LayerInfo
from adatsq_pipe.stages.methods._layer import spec_of
from adatsq_pipe.stages.methods._recipe import methods, resolve, variants
from tests.whole import harness

_NARROW = ("recipe.rank=4", "recipe.weight_group=16", "recipe.activation_group=16")
SMALLER = {
    "ditas": ("recipe.rank=4", "recipe.weight_group=16", "recipe.smoothing_grid=3"),
    "duquant": ("recipe.rotation_steps=4",),
    "permuquant": ("recipe.weight_group=16", "recipe.activation_group=16"),
    "svdquant": _NARROW,
    "timestep_svdquant": _NARROW,
    "first_last_n": ("recipe.end_steps=1",),
}
"""What a method needs changed to fit layers of 32 inputs."""


@pytest.fixture(scope="module")
def captured(family: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("methods") / "run"
    done = harness.run(*harness.tiny(run, family("flux"), "--stages", "capture..fisher"))
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.run
@pytest.mark.parametrize("method", methods())
def test_a_run_of_it_ends_with_a_model_that_draws(method: str, captured: Path, family: Callable[[str], Path]) -> None:
    sets = [f"--set={s}" for s in (f"recipe.method='{method}'", *SMALLER.get(method, ()))]
    done = harness.run(*harness.tiny(captured, family("flux"), "--preset", "w4a4", *sets))
    assert done.returncode == 0, done.stderr
    assert "capture: started" not in done.stderr + done.stdout
    card = (captured / "model" / "README.md").read_text()
    assert f"recipe `{method}`" in card


@pytest.mark.parametrize("method", methods())
def test_every_variant_is_a_recipe_of_its_own(method: str) -> None:
    changes = [change for change in variants(method) if not any("." in key for key in change)]
    tried = [resolve({"method": method, **change}) for change in changes]
    assert len(tried) > 1 and all(one != other for i, one in enumerate(tried) for other in tried[:i])


ROW = {"name": "blocks.0.to_q", "kind": "tokens", "in": 48, "out": 48}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"method": "svdquant"}, "weight_group 64 does not divide the input width 48"),
        ({"method": "svdquant", "weight_group": 0, "activation_group": 0, "rank": 64}, "rank 64 is above"),
        ({"method": "rtn", "weight_bits": 7}, "recipe.weight_bits: .*got 7"),
        ({"method": "quark"}, "unknown recipe.method 'quark'; choose from adatsq, "),
        ({"method": "tq_dit", "allocation": "trellis"}, "needs allocation = 'uniform'"),
        ({"method": "tq_dit", "solver": "gptq"}, "needs solver rtn"),
        ({"method": "rtn", "regions": True}, "regions and time_search are for calibrated scales"),
    ],
)
def test_the_error_names_the_setting_that_a_layer_cannot_take(table: dict[str, object], words: str) -> None:
    with pytest.raises(StageError, match=words):
        spec_of(resolve(table), LayerInfo.from_plain(ROW))


def test_a_group_is_fitted_where_the_recipe_says_so() -> None:
    spec = spec_of(resolve({"method": "svdquant", "group_fit": True}), LayerInfo.from_plain(ROW))
    assert spec.group == spec.activation_group == 48
    assert (
        spec_of(
            resolve({"method": "svdquant", "group_fit": True}), LayerInfo.from_plain({**ROW, "in": 341, "out": 64})
        ).group
        == 31
    )


def test_the_second_linear_of_a_feed_forward_is_not_balanced() -> None:
    recipe = resolve({"method": "ptq4dit"})
    assert spec_of(recipe, LayerInfo.from_plain(ROW)).smoothed
    assert not spec_of(recipe, LayerInfo.from_plain({**ROW, "name": "blocks.0.ff.net.2"})).smoothed


@pytest.mark.run
@pytest.mark.parametrize("fold", [True, False])
def test_a_balance_is_undone_wherever_it_is_folded(fold: bool, captured: Path, family: Callable[[str], Path]) -> None:
    eight = ("weight_bits=8", "conditioning_bits=8", "activation_bits=8", f"smoothing_fold={str(fold).lower()}")
    sets = [f"--set=recipe.{s}" for s in ("method='ptq4dit'", *eight)]
    done = harness.run(*harness.tiny(captured, family("flux"), "--preset", "w4a4", *sets))
    assert done.returncode == 0, done.stderr
    summary = json.loads((captured / "report" / "summary.json").read_text())
    assert summary["quality"]["psnr"]["mean"] > 40
    assert ("folded" in summary["facts"]["smoothing"]) == fold
