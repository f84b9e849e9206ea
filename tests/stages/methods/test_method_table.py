"""The lists of methods in the READMEs are those that the command makes, and say what is known of the methods."""

from __future__ import annotations

from pathlib import Path

import pytest

from adatsq_pipe.stages.methods._recipe import Recipe, methods, resolve
from tests.support import method_table


@pytest.mark.parametrize("file", method_table.FILES, ids=lambda path: str(path.relative_to(method_table.ROOT)))
def test_the_list_is_up_to_date(file: Path) -> None:
    text = file.read_text()
    wanted = method_table.replaced(text, method_table.FILES[file]())
    assert text == wanted, "run: python -m tests.support.method_table"


def test_every_field_of_a_recipe_is_known_to_use_data_or_not() -> None:
    """A new field belongs to DATA_FREE, with its values that use no captured input, or to WITHOUT_DATA."""
    fields = set(Recipe.model_fields)
    assert fields <= method_table.WITHOUT_DATA | set(method_table.DATA_FREE)
    assert not method_table.WITHOUT_DATA & set(method_table.DATA_FREE)


def test_the_table_says_what_the_papers_say() -> None:
    """Data-free are OrbitQuant and rounding to nearest alone; the gradients are AdaTSQ's, TQ-DiT's and ours."""
    recipes = {name: resolve({"method": name}) for name in methods()}
    free = {name for name, recipe in recipes.items() if method_table.data_free(recipe)}
    assert {"rtn", "orbitquant"} <= free and not free & {"svdquant", "smoothquant", "first_last_n", "quarot"}
    graded = {name for name, recipe in recipes.items() if method_table.needs_gradients(recipe)}
    assert {"adatsq", "endpoint", "tq_dit"} <= graded and not graded & {"rtn", "svdquant", "tmpdiff", "vidit_q"}
    names = ("endpoint", "tmpdiff", "tq_dit", "vidit_q", "rtn")
    by_step = {name: method_table.by_step(recipes[name]) for name in names}
    assert by_step == {"endpoint": "bits", "tmpdiff": "bits", "tq_dit": "scales", "vidit_q": "", "rtn": ""}
    assert "step-policy" in method_table.exports(recipes["first_last_n"])
    assert "step-policy" not in method_table.exports(recipes["tmpdiff"])
    takes = method_table.takes()
    layers = {name: method_table._layer(recipes[name]) for name in ("rtn", "svdquant", "orbitquant", "tq_dit")}
    assert [takes(layer) for layer in layers.values()] == [True, False, False, False]


def test_a_text_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="write <!-- made by"):
        method_table.replaced("no list here", "a list")
