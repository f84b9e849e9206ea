"""Pipelines unlike each other, each through the whole run: what the folder draws is what the model in memory draws."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import zoo

pytestmark = [pytest.mark.run, pytest.mark.extended]

UNLIKE = {
    "sd3": "joint attention with shared inputs, three text encoders",
    "sana": "convolutions in the blocks",
    "cogview4": "two calls a step",
    "lumina2-truncated": "two calls in the first step, one in the second",
    "auraflow": "two lists of blocks",
    "wan2.2": "two denoisers, for early and late steps",
    "ltx": "a video, a timestep for every token",
    "cosmos2-image": "a timestep for every frame, of which one is given",
    "ltx2-guided": "calls of two sizes in a step, a copy of the scheduler for sound",
    "ltx-image": "a picture to move, by a manifest",
    "cosmos": "a scheduler that moves twice in a step",
    "cosmos3": "a family that names sample and timestep, a clip without a batch",
}


@pytest.mark.parametrize("name", UNLIKE)
def test_done(name: str, tmp_path: Path) -> None:
    outcome = zoo.try_one(name, tmp_path)
    assert not outcome.traceback and not outcome.refused, outcome
    assert outcome.layers == outcome.inspected > 5 and outcome.difference < 1e-5
    assert outcome.bits[0] == pytest.approx(outcome.bits[1]), "mean bits said are mean bits run"


REFUSED = {
    "unet": "no transformer",
    "amused": "takes no timestep",
    "flux2-klein-kv": "keeps a cache",
    "qwen-image2.1-cached": "use_kv_cache=false",
}


@pytest.mark.parametrize(("name", "words"), REFUSED.items())
def test_refused_before_any_work(name: str, words: str, tmp_path: Path) -> None:
    outcome = zoo.try_one(name, tmp_path)
    assert not outcome.traceback and words in outcome.refused, outcome
    assert not (tmp_path / "run").exists()


def test_refused_once_it_is_opened(tmp_path: Path) -> None:
    outcome = zoo.try_one("z-image-controlnet", tmp_path)
    assert "controlnet runs 15 layers of its denoiser itself" in outcome.refused, outcome
    assert not list((tmp_path / "run").glob("capture/*/markers/**/*.json"))


def test_the_table_tells_done_from_refused() -> None:
    done = zoo.Outcome(name="a", pipeline="APipeline", seconds=1.0, layers=3, difference=0.0, bits=(4.0, 4.0))
    refused = zoo.Outcome(name="b", pipeline="BPipeline", seconds=1.0, refused="because")
    text = zoo.table([done, refused])
    assert "| APipeline (a) | 3 | 4.000 | 4.000 | 0.0e+00 | 1 |" in text and "| BPipeline (b) | because |" in text
    assert text.endswith("1 done, 1 not")
