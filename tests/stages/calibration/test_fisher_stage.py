"""Fisher's declaration: what its bytes depend on, and how many units it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from adatsq_pipe.stages.calibration.fisher import STAGE
from tests.support.made_context import made_context
from tests.support.made_store import make_store


def _reads(method: str, **recipe: object) -> object:
    return STAGE.reads(made_context(Path("run"), Path("model"), recipe={"method": method, **recipe}).settings, "digest")


@pytest.mark.parametrize(
    ("change", "rounds"),
    [
        ({"weight_bits": 3, "weight_budget": 4.0}, True),
        ({"transform_block": 32}, True),
        ({"transform": "greedy"}, True),
        ({"transform": "greedy", "rotation_steps": 9}, True),
        ({"activation_symmetric": True}, True),
        ({"weight_clip": False}, True),
        ({"conditioning_bits": 8}, True),
        ({"permuted": True}, True),
        ({"permuted": True, "channel_order": "moment"}, True),
        ({"smoothing": "smoothquant"}, True),
        ({"smoothing": "migration", "smoothing_layers": "gelu"}, True),
        ({"shift_groups": 2, "temporal": False}, True),
        ({"smoothing_alpha": 0.7}, False),
        ({"smoothing_layers": "gelu"}, False),
        ({"weight_budget": 3.5}, False),
        ({"temporal": True}, False),
        ({"activation_bits": 3}, False),
    ],
)
def test_end_to_end_effects_depend_on_how_layers_are_rounded_and_on_nothing_else_of_the_recipe(
    change: dict[str, object], rounds: bool
) -> None:
    assert (_reads("endpoint", **change) != _reads("endpoint")) is rounds
    step = {key: value for key, value in change.items() if key != "weight_budget"}
    assert _reads("adatsq", **step) == _reads("adatsq"), "scores of single steps do not depend on the rounding"
    assert _reads("endpoint") != _reads("adatsq")


def test_units_are_counted_once_it_is_known_whether_the_loop_can_be_differentiated(tmp_path: Path) -> None:
    store = make_store(tmp_path / "1", recipe={"method": "endpoint"}, fisher={"draws": 3})
    store.write_survey()
    assert STAGE.expected(store.context) is None
    store.write_effects()
    assert STAGE.expected(store.context) == 1 + 3 * store.batches
    other = make_store(tmp_path / "2", recipe={"method": "endpoint"})
    other.write_survey()
    other.write_effects(obstacle="RuntimeError: numpy")
    assert STAGE.expected(other.context) == 1 + 2 * other.batches, "two blocks of steps"
    single = make_store(tmp_path / "3", recipe={"method": "adatsq"})
    single.write_survey()
    assert STAGE.expected(single.context) == 2 * single.batches
