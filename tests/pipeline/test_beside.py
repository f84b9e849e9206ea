"""What idle workers are offered beside each stage: only units of later stages whose inputs are there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adatsq_pipe.pipeline.beside import spare_units
from adatsq_pipe.stages.evaluation import evaluate, reference
from adatsq_pipe.storage.rundir import RunDir
from tests.support.made_run import commit
from tests.support.made_store import MadeStore, make_store

EVERY = ("capture", "assemble", "reference", "evaluate")


@pytest.fixture
def store(tmp_path: Path) -> MadeStore:
    """Three batches of draws: five captions, two at a time."""
    return make_store(tmp_path, evaluate={"prompts": list("abcde"), "seeds": 1, "batch": 2})


def offered(
    store: MadeStore, beside: str, *, planned: Sequence[str] = EVERY, wanted: Sequence[str] = EVERY, complete: str = ""
) -> tuple[object, list[str]]:
    steps: Any = [
        SimpleNamespace(stage=SimpleNamespace(name=name), complete=name == complete, fingerprint="f", identity={"a": 1})
        for name in planned
    ]
    found = spare_units(beside, steps, wanted, store.context, RunDir.at(store.context.run))
    return found.worker, found.units


def draws(*numbers: int) -> list[str]:
    return [f"draw/{number:03d}" for number in numbers]


@pytest.mark.parametrize("beside", ["capture", "fisher", "assemble"])
def test_the_reference_is_drawn_beside_stages_that_have_its_model(store: MadeStore, beside: str) -> None:
    assert offered(store, beside) == (reference.WORKER, draws(0, 1, 2))
    commit(store.context, "reference", "draw/001")
    assert offered(store, beside) == (reference.WORKER, draws(0, 2))
    assert RunDir.at(store.context.run).identities("reference") == [{"a": 1}]


@pytest.mark.parametrize("beside", ["hessian", "solve", "search", "evaluate"])
def test_nothing_is_offered_beside_others(store: MadeStore, beside: str) -> None:
    assert offered(store, beside)[1] == []


def test_quantized_draws_begin_beside_the_reference_where_theirs_is_drawn(store: MadeStore) -> None:
    commit(store.context, "reference", "draw/000")
    commit(store.context, "reference", "draw/002")
    assert offered(store, "reference")[1] == [], "nothing is assembled"
    commit(store.context, "assemble", "model")
    assert offered(store, "reference") == (evaluate.WORKER, ["quantized/000", "quantized/002"])
    commit(store.context, "evaluate", "quantized/000")
    assert offered(store, "reference") == (evaluate.WORKER, ["quantized/002"])
    assert RunDir.at(store.context.run).identities("evaluate") == [{"a": 1}]


@pytest.mark.parametrize(("beside", "later"), [("capture", "reference"), ("reference", "evaluate")])
def test_what_is_not_to_be_done_is_not_offered(store: MadeStore, beside: str, later: str) -> None:
    commit(store.context, "assemble", "model")
    commit(store.context, "reference", "draw/000")
    without = [name for name in EVERY if name != later]
    assert offered(store, beside)[1] and not offered(store, beside, wanted=without)[1]
    assert not offered(store, beside, complete=later)[1] and not offered(store, beside, planned=without)[1]
