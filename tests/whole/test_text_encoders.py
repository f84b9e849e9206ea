"""A run that quantizes text encoders: killed and resumed, then its report, another budget, and whole encoders again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import T5EncoderModel

import adatsq_pipe.stages.runtime  # noqa: F401  (registers the quantizer)
from adatsq_pipe.stages.runtime.text_layers import packed_layers
from tests.conftest import TINY
from tests.whole import harness

pytestmark = pytest.mark.run
TEXT = ("text_encoder", "text_effect")


def _states(run: Path) -> dict[str, str]:
    done = harness.run("status", "--run-dir", str(run), "--json")
    return {row["stage"]: row["state"] for row in json.loads(done.stdout)}


def test_quantized_text_encoders_resume_are_reported_and_are_taken_back(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["run", "--run-dir", str(run), "--model", "scenes/flux-schnell", "--executor", "inline", *TINY]
    command += ["--set", "recipe.method=endpoint", "--set", "model.call.num_inference_steps=2"]
    command += ["--set", "text_encoder.bits=4"]
    assert harness.run(*command, strike="text_encoder:1").returncode < 0
    assert _states(run)["text_encoder"] == "partial"
    done = harness.run(*command)
    assert done.returncode == 0, done.stderr
    assert "text encoders: text_encoder, text_encoder_2 at 4 bits, 3." in done.stdout
    assert set(_states(run).values()) == {"done"} and set(TEXT) <= set(_states(run))
    summary = json.loads((run / "report" / "summary.json").read_text())
    found = summary["text_encoders"]
    assert [e["name"] for e in found["encoders"]] == ["text_encoder", "text_encoder_2"] and found["pictures"] == 1
    assert {e["argument"] for e in found["embeddings"]} == {"encoder_hidden_states", "pooled_projections"}
    assert all(0.01 < e["relative_error"] < 0.5 and 0.8 < e["cosine"] < 1 for e in found["embeddings"])
    assert found["latent_error"]["mean"] > 0 and found["psnr"]["mean"] < 100
    assert "text_encoder_2 (T5EncoderModel)" in (run / "model" / "README.md").read_text()
    assert '<h2 id="text-encoders">' in (run / "report" / "report.html").read_text()
    assert packed_layers(T5EncoderModel.from_pretrained(run / "model" / "text_encoder_2"))

    picked = harness.run("pick", str(run), "--mean-bits", "3.6")
    assert picked.returncode == 0, picked.stderr
    assert "assemble: started" in picked.stderr and not any(f"{stage}: started" in picked.stderr for stage in TEXT)
    assert packed_layers(T5EncoderModel.from_pretrained(run / "model" / "text_encoder_2"))

    whole = harness.run(*command[:-1], "text_encoder.bits=16")
    assert whole.returncode == 0, whole.stderr
    assert not packed_layers(T5EncoderModel.from_pretrained(run / "model" / "text_encoder_2"))
    assert json.loads((run / "report" / "summary.json").read_text())["text_encoders"] is None
