"""The Hessian stage against an explicit sum over steps, its weights a softmax of the Fisher scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.base.survey import LayerInfo
from adatsq_pipe.stages.calibration import hessian, hessian_worker
from adatsq_pipe.storage import tensors
from tests.support import slow_math
from tests.support.made_context import FIRST, MODULATION, SECOND
from tests.support.made_store import MadeStore, make_store


def _done(store: MadeStore, source: str, **survey: Any) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    """(the Gram matrices, the value) of the unit of the layers that share the input `source`."""
    store.write_survey(**survey)
    store.write_activations()
    store.write_scores()
    hessian_worker.Hessian(store.context)(f"gram/{source}")
    marker, folder = store.context.read("hessian", f"gram/{source}")
    return {name: slow_math.from_half(half) for name, half in tensors.read(folder).items()}, marker.value


def _gram_of_step(store: MadeStore, source: str, step: int) -> Tensor:
    """The mean outer product of a step's input rows, one row after the other, in float64."""
    calls = [call for call in range(len(store.calls)) if store.calls[call] == step]
    rows = [row.double() for batch in store.rows[source] for call in calls for row in batch[call]]
    return sum((torch.outer(row, row) for row in rows), torch.zeros(())) / len(rows)


def _softmax(scores: list[float], tau: float) -> list[float]:
    powers = [math.exp((score - max(scores)) / tau) for score in scores]
    return [power / sum(powers) for power in powers]


def _effective(alpha: list[float]) -> float:
    return math.exp(-sum(a * math.log(a) for a in alpha if a))


def _close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("calls", [(0, 1, 2), (0, 0, 1, 1, 2, 2)])
def test_a_gram_is_the_sum_over_steps_weighted_by_the_softmax_of_fisher_scores(
    tmp_path: Path, calls: tuple[int, ...]
) -> None:
    store = make_store(tmp_path, calls=calls)
    found, value = _done(store, FIRST)
    assert sorted(found) == [FIRST, SECOND]
    for layer, name in enumerate((FIRST, SECOND)):
        scores = [(sum(batch[step, layer].item() for batch in store.scores) / store.batches) for step in range(3)]
        alpha = _softmax(scores, value[name]["tau"])
        assert _effective(alpha) == pytest.approx(0.8 * 3, rel=1e-6)
        assert value[name]["effective_steps"] == pytest.approx(0.8 * 3, abs=1e-3)
        assert alpha.index(max(alpha)) == scores.index(max(scores))
        _close(found[name], sum(alpha[step] * _gram_of_step(store, FIRST, step) for step in range(3)))  # type: ignore[arg-type]


def test_layers_that_share_an_input_have_weights_of_their_own(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.scores[:, :, 0] = torch.tensor([9.0, 1, 1])
    store.scores[:, :, 1] = torch.tensor([1.0, 1, 9])
    found, value = _done(
        store,
        FIRST,
    )
    first, second = (
        _softmax(list(scores), value[name]["tau"]) for name, scores in ((FIRST, (9, 1, 1)), (SECOND, (1, 1, 9)))
    )
    assert first[0] > 0.6 and second[2] > 0.6
    assert value[FIRST]["gram"] == FIRST and value[SECOND]["gram"] == SECOND
    _close(found[FIRST], sum(first[t] * _gram_of_step(store, FIRST, t) for t in range(3)))  # type: ignore[arg-type]
    _close(found[SECOND], sum(second[t] * _gram_of_step(store, FIRST, t) for t in range(3)))  # type: ignore[arg-type]


ALIKE: dict[str, dict[str, Any]] = {
    "not temporal": {"hessian": {"temporal": False}},
    "a recipe that is not temporal": {"recipe": {"temporal": False}},
    "all steps effective": {"hessian": {"effective_steps": 1.0}},
}


@pytest.mark.parametrize("overrides", ALIKE.values(), ids=ALIKE)
def test_without_temporal_weights_every_step_counts_alike(tmp_path: Path, overrides: dict[str, Any]) -> None:
    store = make_store(tmp_path, **overrides)
    for source in (FIRST, MODULATION):
        found, value = _done(store, source)
        mean = sum((_gram_of_step(store, source, step) for step in range(3)), torch.zeros(())) / 3
        for name in found:
            _close(found[name], mean)
        for name, row in value.items():
            assert row == {"gram": source, "tau": None, "effective_steps": 3.0}, name
        assert sorted(found) == [source], "layers of equal weights share one matrix"


def test_fewer_effective_steps_give_more_weight_to_the_step_of_the_highest_score(tmp_path: Path) -> None:
    store = make_store(tmp_path, hessian={"effective_steps": 0.5})
    found, value = _done(store, MODULATION)
    scores = store.scores.mean(0)[:, 2].tolist()
    alpha = _softmax(scores, value[MODULATION]["tau"])
    assert _effective(alpha) == pytest.approx(1.5, rel=1e-6)
    _close(found[MODULATION], sum(alpha[t] * _gram_of_step(store, MODULATION, t) for t in range(3)))  # type: ignore[arg-type]


def test_a_layer_of_one_of_several_denoisers_is_weighted_over_its_own_steps(tmp_path: Path) -> None:
    store = make_store(tmp_path, hessian={"effective_steps": 0.75})
    early = {"layers": [{**store.row(name), "part": "early"} for name in store.names], "parts": {"early": [0, 2]}}
    found, value = _done(store, FIRST, **early)
    scores = store.scores.mean(0)[:, 0].tolist()
    alpha = _softmax([scores[0], scores[2]], value[FIRST]["tau"])
    assert _effective(alpha) == pytest.approx(0.75 * 2, rel=1e-6)
    _close(found[FIRST], alpha[0] * _gram_of_step(store, FIRST, 0) + alpha[1] * _gram_of_step(store, FIRST, 2))


def test_there_is_one_unit_for_every_distinct_input(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.write_survey()
    assert hessian.STAGE.expected(store.context) == 2
    assert hessian._units(store.context) == [f"gram/{FIRST}", f"gram/{MODULATION}"]


def test_narrow_inputs_are_done_a_few_at_a_time_and_a_wide_one_alone(tmp_path: Path) -> None:
    def row(name: str, width: int, source: str = "") -> LayerInfo:
        owner = source or name
        return LayerInfo(name=name, in_features=width, out_features=8, role="tokens", input_of=owner, macs=8)

    rows = [row("a", 64), row("a2", 64, "a"), *(row(name, 64) for name in "bcde"), row("wide", 4608), row("f", 64)]
    assert hessian.tasks(rows) == {
        "grams/a": ["gram/a", "gram/b", "gram/c", "gram/d"],
        "grams/e": ["gram/e"],
        "grams/wide": ["gram/wide"],
        "grams/f": ["gram/f"],
    }


def test_a_task_does_what_is_missing_of_its_units(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    _done(store, FIRST)
    marker = tmp_path / f"run/hessian/{'2' * 16}/markers/gram/{FIRST}.json"
    before = marker.stat().st_mtime_ns
    hessian_worker.Hessian(store.context)(f"grams/{FIRST}")
    assert list(store.manifest("hessian").units()) == [f"gram/{FIRST}", f"gram/{MODULATION}"]
    assert marker.stat().st_mtime_ns == before
