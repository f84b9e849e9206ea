"""A model as people have it on their disks: a read-only download cache with a whole repository, the run inside it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.whole import harness

pytestmark = pytest.mark.run

STRAY = (
    "flux1-dev.safetensors", "dev_grid.jpg", "onnx/transformer/model.onnx", "text_encoder/model.fp16.safetensors",
    "transformer/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "transformer/notes.md",
)  # fmt: skip


def _cached(source: Path, hub: Path) -> Path:
    """The pipeline folder as huggingface_hub has it in its cache: read-only files by hash, and links to them."""
    repository = hub / "models--acme--Tiny-Flux"
    snapshot = repository / "snapshots" / "0123456789abcdef"
    (repository / "blobs").mkdir(parents=True)
    for path in (path for path in source.rglob("*") if path.is_file()):
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blob)
        blob.chmod(0o444)
        link = snapshot / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_a_whole_repository_in_the_hubs_cache_with_the_run_inside_it(tiny_flux: Path, tmp_path: Path) -> None:
    model = _cached(tiny_flux, tmp_path / "hub")
    weights = tiny_flux / "transformer" / "diffusion_pytorch_model.safetensors"
    for name in STRAY:
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(weights, model / name)
    (model / "LICENSE.md").write_text("be kind")
    shutil.rmtree(model / "transformer")
    shutil.copytree(tiny_flux / "transformer", model / "transformer")
    save_file({**load_file(weights), "ema.decay": torch.ones(1)}, model / "transformer" / weights.name)
    (model / "preview.png").symlink_to("nowhere")
    for part in ("transformer", "vae", "tokenizer"):
        (model / part).chmod(0o555)
    run, before = model / "adatsq-run", os.umask(0o022)
    try:
        done = harness.run(*harness.tiny(run, model))
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    loaded = {str(path.relative_to(tiny_flux)) for path in tiny_flux.rglob("*") if path.is_file()}
    result = (run / "model").resolve()
    files = {str(path.relative_to(result)) for path in result.rglob("*") if path.is_file()}
    assert files == {*loaded, "LICENSE.md", "README.md", "policy.png", "sheet.png"}
    assert {path.stat().st_mode & 0o777 for path in result.rglob("*")} == {0o644, 0o755}
    assert json.loads((run / "report" / "summary.json").read_text())["title"].startswith("acme/Tiny-Flux: ")
    assert "base_model: acme/Tiny-Flux\n" in (result / "README.md").read_text()
    plain, made = load_file(weights), load_file(result / "transformer" / weights.name)
    assert "ema.decay" not in made
    assert all(made[name].equal(plain[name]) for name in made if name in plain and not name.endswith("bias"))
    (model / "a note of mine.txt").write_text("it was good")
    rows = json.loads(harness.run("status", "--run-dir", str(run), "--json").stdout)
    assert {row["state"] for row in rows} == {"done"}
    shutil.rmtree(run)


@pytest.mark.parametrize("kind", ["a variant only", "a link out of the folder"])
def test_weights_that_do_not_load_are_refused_before_any_work(kind: str, tiny_flux: Path, tmp_path: Path) -> None:
    model, words = tmp_path / "model", "weights of the variant fp16 only"
    shutil.copytree(tiny_flux, model)
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    if kind == "a variant only":
        weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    else:
        weights.rename(tmp_path / "elsewhere")
        weights.symlink_to(tmp_path / "elsewhere")
        words = "outside of the model folder"
    for command in (("inspect", str(model)), harness.tiny(tmp_path / "r", model)):
        done = harness.run(*command)
        line = harness.last_line(done.stderr)
        assert done.returncode == 2 and line.startswith("error:") and words in line, done.stderr
    assert not (tmp_path / "r").exists()
