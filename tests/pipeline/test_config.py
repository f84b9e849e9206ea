"""Configuration layers, stage ranges, and the package list."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from adatsq_pipe.pipeline import config, plan
from adatsq_pipe.pipeline.config import ConfigError
from adatsq_pipe.stages.base.stage import STAGES, all_stages
from adatsq_pipe.stages.methods._recipe import methods, resolve
from adatsq_pipe.stages.scenes.world.captions import SHAPES
from adatsq_pipe.storage.rundir import RunDir

ROOT = Path(__file__).parents[2]


def _load(*sets: str, preset: str | None = None, kept: dict[str, object] | None = None) -> config.RunConfig:
    return config.load(preset=preset, file=None, sets=sets, model=None, kept=kept)


def test_layers_lie_in_order(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[search]\nbudget = 3.3\nwidth = 3\n")
    made = config.load(preset="w3a3", file=file, sets=["search.budget=3.2"], model=None, kept=None)
    assert (made.tables["search"]["budget"], made.tables["search"]["width"]) == (3.2, 3)
    assert made.tables["recipe"]["weight_bits"] == 3


def test_what_was_asked_before_is_gone_on_with_until_a_preset_starts_anew() -> None:
    first = _load("search.budget=3.2", preset="w3a3")
    again = _load("solve.damping=0.05", kept=dict(first.asked))
    assert (again.tables["search"]["budget"], again.tables["solve"]["damping"]) == (3.2, 0.05)
    assert _load(preset="w3a3", kept=dict(first.asked)).tables["search"]["budget"] == 3.1


def test_the_cluster_table_bears_no_identity() -> None:
    a, b = _load(), _load("cluster.workers=7", "cluster.executor='inline'")
    for stage in all_stages().values():
        assert stage.reads(a.tables, "m") == stage.reads(b.tables, "m")


def test_held_out_captions_are_not_calibration_captions() -> None:
    """Save the captions without a colour, which are too few to hold any out."""
    made = _load("data.count=60", "evaluate.count=60")
    both = set(made.tables["data"]["prompts"]) & set(made.tables["evaluate"]["prompts"])
    assert both <= {f"a {a}{b}" for a in SHAPES for b in ("", *(f" and a {c}" for c in SHAPES))}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("all", list(STAGES)),
        ("solve", ["solve"]),
        ("solve,fisher", ["fisher", "solve"]),
        ("hessian..search", ["hessian", "solve", "search"]),
        ("capture,assemble..evaluate", ["capture", "assemble", "evaluate"]),
    ],
)
def test_stages(text: str, wanted: list[str]) -> None:
    assert plan.choose(text) == wanted


@pytest.mark.parametrize("text", ["", "solv", "search..solve", "capture..x"])
def test_wrong_stages(text: str) -> None:
    with pytest.raises(ConfigError):
        plan.choose(text)


def test_presets_are_whole() -> None:
    for name in config.PRESETS:
        made = _load(preset=name)
        assert resolve(made.tables["recipe"]).weight_bits == int(name[1])


@pytest.mark.parametrize("method", methods())
def test_every_method_is_a_recipe(method: str) -> None:
    assert resolve(_load(f"recipe.method={method}").tables["recipe"])


def test_the_package_list_is_the_folders() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [
        p.parent.relative_to(ROOT)
        for room in ("pipeline", "stages", "storage", "cluster")
        for p in (ROOT / room).rglob("__init__.py")
    ]
    assert sorted(listed) == sorted("adatsq_pipe." + ".".join(p.parts) for p in found)


def test_a_call_may_hold_lists_and_nothing(tmp_path: Path) -> None:
    sets = [
        "model.call.steps=[1, 2]",
        "model.call.schedule=null",
        "model.call.eta=0.5",
        "model.call.dynamic=true",
        "model.call.how={a=1}",
    ]
    loaded = _load(*sets)
    call = loaded.tables["model"]["call"]
    assert (call["steps"], call["schedule"], call["eta"], call["dynamic"]) == ([1, 2], None, 0.5, True)
    assert call["how"] == {"a": 1}
    place = RunDir(tmp_path)
    config.keep_config(place, loaded)
    again = _load(kept=config.kept_config(tmp_path))
    assert again.tables["model"]["call"] == call
    with pytest.raises(ConfigError, match=r"model\.call"):
        _load("model.call.x={a={b=1}}")
