"""The floor: weights that change by a relative 1e-7, and how far that puts full precision from itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from adatsq_pipe.pipeline import plan
from adatsq_pipe.pipeline.config import RunConfig, load
from adatsq_pipe.stages.base.stage import STAGES
from adatsq_pipe.stages.denoiser import loading
from adatsq_pipe.stages.evaluation.floor import STAGE, UNIT, Floor, floor_of
from adatsq_pipe.stages.evaluation.floor_worker import ChangedDraws, change_weights
from adatsq_pipe.stages.evaluation.reference_worker import Reference
from adatsq_pipe.stages.evaluation.sampling import draws
from adatsq_pipe.storage import tables
from adatsq_pipe.storage.rundir import RunDir
from tests.support.drawing_denoiser import Drawing, squares
from tests.support.made_store import MadeStore, make_store

SEED = 50
EVALUATE = {"prompts": ["a red circle", "a blue square"], "seeds": 2, "batch": 3, "seed": SEED}


def _by_hand(parameters: list[Tensor], scale: float, seed: int) -> list[npt.NDArray[Any]]:
    """The weights times 1 + scale n, in float64, then as they were stored."""
    generator, changed = torch.Generator().manual_seed(seed), []
    for parameter in parameters:
        normal = torch.randn(parameter.shape, generator=generator).numpy().astype(np.float64)
        weight = parameter.detach().numpy()
        changed.append((weight.astype(np.float64) * (1 + scale * normal)).astype(weight.dtype))
    return changed


def test_weights_are_changed_in_float64_and_rounded_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.LayerNorm(30))
    before = [p.detach().clone() for p in model.parameters()]
    right = _by_hand(before, 1e-7, 3)
    weights, changed = change_weights([model, model[0]], 1e-7, 3)
    moved = [p.detach().numpy() for p in model.parameters()]
    assert all(np.array_equal(a, b) for a, b in zip(moved, right, strict=True)), "a weight of two modules changes once"
    assert weights == 40 * 30 + 30 + 2 * 30
    assert changed == sum(int((a != b.numpy()).sum()) for a, b in zip(right, before, strict=True))
    # Half an ulp is between 3e-8 and 6e-8 of a float32: most changes are larger, many are not.
    assert 0.5 < changed / weights < 0.8


def test_the_changes_are_normal_with_the_scale_as_their_deviation() -> None:
    model = nn.Linear(400, 100).double()
    before = model.weight.detach().clone()
    change_weights([model], 1e-7, 0)
    relative = (model.weight.detach() / before - 1).numpy().ravel()
    assert relative.std() == pytest.approx(1e-7, rel=0.02) and abs(relative.mean()) < 2e-9
    assert (np.abs(relative) > 2e-7).mean() == pytest.approx(0.0455, abs=0.005)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_dtypes_do_not_hold_the_change(dtype: torch.dtype) -> None:
    model = nn.Linear(400, 100).to(dtype)
    before = model.weight.detach().clone()
    normal = torch.randn(before.shape).double()
    assert torch.equal((before.double() * (1 + 1e-7 * normal)).to(dtype), before), "it would round away"
    assert change_weights([model], 1e-7, 0) == (400 * 100 + 100, 0) and torch.equal(model.weight, before)
    mixed = nn.ModuleList([model, nn.LayerNorm(100)])
    weights, changed = change_weights([mixed], 1e-7, 0)
    assert weights == 40_300 and 0 < changed <= 200, "norms that stay in float32 hold it"


def _opened(store: MadeStore, patch: pytest.MonkeyPatch, dtype: torch.dtype = torch.float32) -> list[Drawing]:
    """Every denoiser that workers open from now on: each has the weights of the pipeline's folder."""
    opened: list[Drawing] = []

    def load_denoiser(*args: Any, **kwargs: Any) -> Drawing:
        opened.append(Drawing())
        if dtype != torch.float32:
            opened[-1].transformer.to(dtype)
        return opened[-1]

    store.write_survey()
    patch.setattr(loading, "SLOT", loading.ModelSlot())
    patch.setattr(loading, "Denoiser", load_denoiser)
    return opened


def _store(folder: Path) -> MadeStore:
    store = make_store(folder, evaluate=EVALUATE)
    store.context.fingerprints["floor"] = "f" * 64  # type: ignore[index]
    return store


def test_the_floor_is_what_numpy_makes_of_the_draws_with_changed_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _store(tmp_path)
    opened = _opened(store, monkeypatch)
    Reference(store.context)(UNIT)
    ChangedDraws(store.context)(UNIT)
    full, changed, conditions = Drawing(), Drawing(), draws(store.context)[0]
    parameters = list(changed.transformer.parameters())
    right = _by_hand(parameters, 1e-7, SEED)
    for parameter, value in zip(parameters, right, strict=True):
        parameter.data = torch.from_numpy(value)
    latents = [d.followed(conditions)[1] for d in (full, changed)]
    pictures = [squares(conditions, found).double().numpy() for found in latents]
    a, b = (found.double().flatten(1).numpy() for found in latents)
    errors = ((b - a) ** 2).sum(1) / (a**2).sum(1)
    psnr = -10 * np.log10(((pictures[1] - pictures[0]) ** 2).mean((1, 2, 3)))
    assert ((errors > 1e-16) & (errors < 1e-11)).all() and (psnr > 100).all()
    floor = floor_of(store.context)
    assert floor.latent_error == pytest.approx(np.prod(errors) ** (1 / 3), rel=1e-6, abs=0)
    assert floor.psnr == pytest.approx(psnr.mean(), rel=1e-6)
    before = np.concatenate([p.detach().numpy().ravel() for p in full.transformer.parameters()])
    count = int((np.concatenate([value.ravel() for value in right]) != before).sum())
    assert (floor.draws, floor.weights, floor.changed) == (3, len(before), count)
    rows = tables.read(store.context.read("floor", UNIT)[1] / "samples.parquet")
    assert [(r["prompt"], r["seed"]) for r in rows] == list(zip(conditions.prompts, conditions.seeds, strict=True))
    assert [row["latent_error"] for row in rows] == pytest.approx(errors, rel=1e-6, abs=0)
    assert len(opened) == 1 or opened[0] is not opened[1]
    Reference(store.context)("draw/001")
    assert len(opened) == 2, "no later worker gets the changed model"


def test_a_dtype_that_cannot_hold_the_change_needs_no_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _store(tmp_path)
    _opened(store, monkeypatch)
    Reference(store.context)(UNIT)
    _opened(store, monkeypatch, torch.bfloat16)
    ChangedDraws(store.context)(UNIT)
    floor = floor_of(store.context)
    assert (floor.latent_error, floor.psnr, floor.draws, floor.changed) == (None, None, 0, 0)
    line = floor.line("bfloat16")
    assert line.endswith("in every weight vanishes in bfloat16, so the floor is below the dtype.")


def test_the_line_says_how_far_and_over_how_many_draws() -> None:
    floor = Floor(latent_error=2.5e-12, psnr=121.4, draws=6, weights=200, changed=130)
    line = floor.line("float32")
    assert "(float32 holds it in 65 % of them)" in line
    assert line.endswith("latent error 2.5e-12 (geometric mean) and PSNR 121 dB from itself, over the first 6 draws.")


class Listed:
    """An executor that notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def stream(self, worker: Any, context: Any, keys: Any) -> Any:
        self.asked.append(list(keys))
        return iter(())

    def coordinate(self, search: Any, context: Any, report: Any) -> None:
        raise AssertionError


def test_a_measured_floor_is_not_measured_again(tmp_path: Path) -> None:
    store, executor = _store(tmp_path), Listed()
    STAGE.run(store.context, executor, lambda done, total: None)
    store.manifest("floor").open_unit(UNIT)
    store.manifest("floor").commit(UNIT)
    STAGE.run(store.context, executor, lambda done, total: None)
    assert executor.asked == [["draw/000"], []]


@pytest.fixture
def configs(tmp_path: Path) -> list[RunConfig]:
    """Three runs of one model: as it is, with another seed of the held-out draws, with another recipe."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    changes: list[tuple[str, ...]] = [(), ("evaluate.seed=9",), ("recipe.weight_bits=3",)]
    return [load(preset=None, file=None, sets=sets, model=str(tmp_path / "model"), previous=None) for sets in changes]


def test_the_floor_hangs_on_the_reference_alone_and_no_ordinary_run_has_it(
    configs: list[RunConfig], tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    contexts = [plan.plan(config, run, (STAGE,))[1] for config in configs]
    prints = [context.fingerprints["floor"] for context in contexts]
    assert prints[0] != prints[1] and prints[0] == prints[2]
    assert "floor" not in STAGES
    for config, context in zip(configs, contexts, strict=True):
        ordinary = plan.plan(config, run)[1].fingerprints
        assert ordinary == {name: digest for name, digest in context.fingerprints.items() if name != "floor"}
