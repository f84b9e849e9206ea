"""Bytes and operations of a model with two layers, against figures that were computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adatsq_pipe.pipeline.config import load
from adatsq_pipe.pipeline.estimate import disk, memory, work
from adatsq_pipe.pipeline.estimate.denoising import Denoising
from adatsq_pipe.pipeline.estimate.geometry import Geometry
from adatsq_pipe.pipeline.estimate.outlook import Outlook
from adatsq_pipe.pipeline.estimate.subject import Subject
from adatsq_pipe.pipeline.estimate.trace import Cost
from adatsq_pipe.pipeline.estimate.units import units_of
from adatsq_pipe.stages.base.survey import CallSurvey, LayerInfo
from adatsq_pipe.stages.numerics import symmetric

STEPS, CAPTIONS, BATCH = 10, 6, 4


def outlook(*sets: str) -> Outlook:
    """q and k share one input of 64 channels, of 16 tokens a caption; six captions in batches of four and two."""
    rows = tuple(
        LayerInfo(
            name=f"blocks.0.{name}", in_features=64, out_features=out, role="tokens", input_of="blocks.0.q",
            macs=16 * 64 * out,
        )
        for name, out in (("q", 64), ("k", 32))
    )  # fmt: skip
    settings = load(
        preset=None, file=None, model="scenes/flux-dev", previous=None,
        sets=(
            f"data.count={CAPTIONS}", f"data.batch={BATCH}", "evaluate.count=5", "evaluate.seeds=2", "evaluate.batch=4",
            "model.world=''", *sets,
        ),
    ).settings  # fmt: skip
    one = Denoising(
        captions=BATCH, survey=CallSurvey(layers=rows, unused=(), repeated=()), blocks=(),
        sizes={"blocks.0.q.weight": 4096, "blocks.0.k.weight": 2048, "out.weight": 1000},
        forward=Cost(flops={"float32": 1e6}, peak=1000.0), backward=Cost(flops={"float32": 3e6}, peak=5000.0),
        quantized=Cost(flops={"float32": 2e6}, peak=2000.0), rest=0.0, held=4000, held_by_block=4000,
        sample=BATCH * 256, output=BATCH * 256, rows={"blocks.0.q": 64, "blocks.0.k": 64},
    )  # fmt: skip
    subject = Subject(
        path=Path("model"), pipeline="", denoisers={"transformer": {}}, vae={}, scheduler={}, index={},
        sizes={}, stored={}, copied=777, assumed=(),
    )  # fmt: skip
    geometry = Geometry(height=8, width=8, frames=0, latents=(4, 4, 4), text=0, steps=STEPS, halves=1, calls_per_step=1)
    return Outlook(subject=subject, settings=settings, geometry=geometry, denoising={"transformer": one})


def test_units() -> None:
    assert units_of(outlook()) == {
        "capture": (2, 2, 2), "fisher": (3,), "hessian": (1,), "solve": (1 + 2,), "search": (2, 1), "assemble": (1,),
        "reference": (3,), "evaluate": (3,),
    }  # fmt: skip
    assert units_of(outlook("capture.block=4"))["capture"] == (2, 2, 6), "steps 0-3, 4-7 and 8-9 of two batches"
    assert units_of(outlook("fisher.draws=3"))["fisher"] == (7,)


@pytest.mark.parametrize(
    ("recipe", "levels", "front"),
    [
        ("recipe.method=adatsq", (3, *[5] * 9, 4), 1),
        ("search.beam=true", (4, *[7] * 9, 4), 1),
        ("recipe.method=rtn", (), 1),
    ],
)  # fmt: skip
def test_units_of_a_search(recipe: str, levels: tuple[int, ...], front: int) -> None:
    """A level: a path for each survivor (one, then two) and candidate (two, or three), and its own unit; then rollouts
    of two survivors and two even paths, or of the allocation and the weights alone."""
    assert units_of(outlook(recipe))["search"] == (*levels, front)


def _bare(found: Outlook, stage: str) -> float:
    """Bytes of a stage's numbers, without what every unit and array takes besides."""
    without: dict[str, Any] = {name: getattr(disk, name) for name in ("ARRAY", "UNIT", "SURVEY")}
    with pytest.MonkeyPatch.context() as patch:
        for name in without:
            patch.setattr(disk, name, 0)
        return disk.disk_of(found, units_of(found))[stage]


def test_bytes_on_disk() -> None:
    found = outlook()
    outputs, latents = STEPS * CAPTIONS * 256, CAPTIONS * 4 * 64
    rows = STEPS * 64 * 4 * (48 + 32 + 2)  # 48 of 64 rows, all 32 of the second batch, and a peak of each
    assert _bare(found, "capture") == pytest.approx(outputs + latents + rows, abs=500)
    assert _bare(found, "fisher") == CAPTIONS * (4 * STEPS * 2 * (6 + 1) + 8)
    assert _bare(found, "hessian") == 4 * 64**2, "both layers have one input, and no timestep counts more"
    weighted = outlook("recipe.temporal=true")
    assert _bare(weighted, "hessian") == 2 * 4 * 64**2
    codes, scales = 64 * (64 + 32), (2 + 1) * (64 + 32)
    assert _bare(found, "solve") == codes + scales
    pictures, samples, last = 10 * 4 * 3 * 64, STEPS * 10 * 256, 10 * 4 * 64
    assert _bare(found, "reference") == pictures + samples + last
    policy, rest = 2 * STEPS, 4 * 1000
    assert _bare(found, "assemble") == pytest.approx(777 + codes / 2 + scales + policy + rest, abs=1_500)  # and names


def test_half_of_each_gram_matrix_is_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symmetric, "STRIP", 16)
    assert _bare(outlook(), "hessian") == 4 * 16**2 * (4 + 3 + 2 + 1)


def test_mean_weight_bits_change_the_folder() -> None:
    four, three = (disk.quantized_layers(outlook(f"recipe.weight_budget={bits}"), "transformer") for bits in (4, 3))
    assert four - three == 64 * (64 + 32) / 8


def test_calls() -> None:
    found = work.work_of(outlook())
    assert found["capture"].passes == 2 * STEPS + 1, "each batch once, a survey"
    assert found["capture"].calls == {"forward": {"transformer": STEPS * 6 / 4 + 1}}
    assert found["fisher"].passes == 2 * 2 * STEPS and found["fisher"].calls == {"backward": {"transformer": 15.0}}
    assert found["search"].calls == {"quantized": {"transformer": 2 * STEPS * 2 / 4}}, "two policies, the other batch"
    assert found["reference"].passes == found["evaluate"].passes == 3 * STEPS
    assert found["evaluate"].calls == {"quantized": {"transformer": STEPS * 10 / 4}}


def test_algebra() -> None:
    found = work.work_of(outlook())
    assert found["capture"].algebra.traffic == STEPS * 6 / 4 * 64 * 64 * 4 * 3, "absolute values, and their maximum"
    assert found["hessian"].algebra.flops == {"float32": STEPS * 2 * (48 + 48) * 64**2}
    errors, rotation, factor, behind = 64**3, 4 * 64**2 * 128, 1 / 3 * 64**3, 64**3
    square = work.solve_cost(64, 64, gptq=True, clip=True)
    assert square.flops == {"float64": pytest.approx(rotation + factor), "float32": errors + behind}
    wide = work.solve_cost(1024, 8, gptq=True, clip=True).flops
    assert wide == {"float32": pytest.approx(4 * 1024**2 * 128 + 1024**3 / 3), "half": 2 * 8 * 1024**2}
    assert work.solve_cost(64, 64, gptq=False, clip=True).flops["float32"] == 2 * errors
    assert found["solve"].solved == {(64, 64): 1, (64, 32): 1}


def test_long_rows_try_fewer_clipping_ratios() -> None:
    assert (work.clip_tries(511), work.clip_tries(512)) == (40, 11)
    assert work.clip_cost(512, 3).traffic == 11 * 8 * 4 * 512 * 3


def test_main_memory_of_a_worker() -> None:
    """A process, the model, and what a stage works with; a later stage keeps most of what fisher took."""
    found = {stage: of.device - memory.PROCESS for stage, of in memory.memory_of(outlook(), None).items()}
    model = 4 * 7144
    rows = STEPS * 4 * 64 * (1 + 48)
    capture = 1000 + STEPS * BATCH * 256 + 3 * rows
    assert found["capture"] == model + capture
    fisher = 1.15 * (4 * 6144 + 5000 + STEPS * BATCH * 256) + 0.8 * capture
    assert found["fisher"] == int(model + fisher)
    assert found["hessian"] == int(model + max(64**2 * (4 + 8 + 4), 0.8 * max(capture, fisher)))


def test_gram_matrices_are_summed_in_blocks_in_main_memory_and_whole_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = outlook("recipe.temporal=true")
    on_a_gpu = memory.memory_of(found, 10**10)["hessian"].device
    monkeypatch.setattr(memory, "BLOCK", 8 * 16 * 64)
    assert memory.memory_of(found, 10**10)["hessian"].device == on_a_gpu
    assert memory._besides(found, "hessian") == 64**2 * 4 * 2 + 16 * 64 * (8 * 2 + 4)
    owner, two = next(iter(found.grams)), 2
    assert memory._gram(found, owner, whole=False) == 64**2 * 4 * two + 16 * 64 * (8 * two + 4)
    assert memory._gram(found, owner, whole=True) == 64**2 * 4 * two + 64 * 64 * (8 * two + 4)


def test_a_wide_layer_is_factored_in_float32() -> None:
    found = outlook()
    assert memory._solve(found, 1024, 8) == 16 * 1024**2 + 13 * 1024 * 8
    assert memory._solve(found, 1024, 8192) == 16 * 1024**2 + 13 * 1024 * 8192
    assert memory._solve(found, 1000, 8) == 28 * 1000**2 + 4 * 1000 * 8


def test_assemble_holds_one_layer() -> None:
    """The wider layer's codes are there three times while they are packed."""
    assert memory.memory_of(outlook(), 10**10)["assemble"].host - memory.PROCESS == 3 * 64 * 64


def test_a_gpu_that_is_too_small_takes_fewer_captions_then_blocks() -> None:
    weights = 4 * 7144
    roomy = memory.memory_of(outlook(), 10**10)["fisher"]
    assert (roomy.captions, roomy.blockwise, roomy.recomputed) == (4, False, False)
    working = 5000 + STEPS * BATCH * 256
    assert roomy.device == int(memory.RUNTIME + memory.ROOM * (weights + working))
    half = memory.memory_of(outlook(), memory.RUNTIME + int(memory.ROOM * (weights + working / 2)) + 10)["fisher"]
    assert half.captions == 2
