"""Pipelines that take pictures with their prompts, by manifests: whole runs, and what a wrong manifest is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.whole import harness
from tests.zoo.given import BUILDERS

pytestmark = pytest.mark.run

SETTINGS = (
    "--set", "model.call.num_inference_steps=3", "--set", "recipe.conditioning_group=0", "--set", "evaluate.seeds=1",
    "--set", "capture.rows=16",
)  # fmt: skip


def _model(name: str, folder: Path) -> tuple[Path, str]:
    build, argument = BUILDERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe, call = build()
    pipe.save_pretrained(folder / name)
    (folder / name / "sampling.json").write_text(json.dumps({"call": call}))
    return folder / name, argument


def _manifest(folder: Path, argument: str, count: int, **more: Any) -> Path:
    """A manifest with pictures beside it, all of them different."""
    folder.mkdir(exist_ok=True)
    rows = []
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
        rows.append({"prompt": "a red circle", "images": {argument: f"{i}.png"}, "seed": 5 + i, **more})
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def _run(model: Path, run: Path, data: Path, judged: Path) -> list[str]:
    files = ["--set", f"data.prompts_file={data}", "--set", f"evaluate.prompts_file={judged}"]
    return ["run", "--run-dir", str(run), "--model", str(model), "--executor", "inline", *SETTINGS, *files]


@pytest.mark.parametrize("name", BUILDERS)
def test_a_whole_run(name: str, tmp_path: Path) -> None:
    model, argument = _model(name, tmp_path)
    more = {"call": {"strength": 0.9}} if name == "changed" else {}
    data, judged = (_manifest(tmp_path / part, argument, n, **more) for part, n in (("data", 2), ("judged", 1)))
    done = harness.run(*_run(model, tmp_path / "run", data, judged))
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "run" / "given").iterdir())) == 2, "the third picture is the first"
    moved = shutil.move(data.parent, tmp_path / "elsewhere")
    again = harness.run(*_run(model, tmp_path / "run", Path(moved) / "manifest.jsonl", judged))
    assert again.returncode == 0 and "nothing to do" in again.stdout, again.stderr


def test_pictures_and_seeds_bear_identity(tmp_path: Path) -> None:
    model, argument = _model("changed", tmp_path)
    data, judged = (_manifest(tmp_path / part, argument, 1) for part in ("data", "judged"))
    command = _run(model, tmp_path / "run", data, judged)
    assert harness.run(*command, "--stages", "capture").returncode == 0
    for change in ("picture", "seed"):
        if change == "picture":
            Image.new("RGB", (16, 16), "red").save(data.parent / "0.png")
        else:
            data.write_text(data.read_text().replace('"seed": 5', '"seed": 6'))
        why = harness.run("why", *command[1:5], *command[7:])
        assert "capture   would run: reads.data.inputs" in why.stdout, why.stdout + why.stderr
        assert harness.run(*command, "--stages", "capture").returncode == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "x"}', "needs image besides its prompt; give it with each prompt in manifests"),
        ('{"prompt": "x", "images": {"image": "no.png"}}', "no.png is no picture that can be read"),
        ('{"prompt": "x", "images": "0.png"}', "write an object"),
        ('{"prompt": "x", "images": {"image": "0.png"}, "seed": "a"}', "write a whole number"),
        ('{"prompt": "x", "images": {"image": "0.png", "picture": "0.png"}}', "takes no picture; it takes"),
    ],
)
def test_a_wrong_manifest_is_refused_before_any_work(text: str, said: str, tmp_path: Path) -> None:
    model, argument = _model("moved", tmp_path)
    wrong = _manifest(tmp_path / "data", argument, 1)
    wrong.write_text(text)
    done = harness.run(*_run(model, tmp_path / "run", wrong, wrong))
    assert done.returncode == 2 and said in harness.last_line(done.stderr), done.stderr
    assert not (tmp_path / "run").exists()
