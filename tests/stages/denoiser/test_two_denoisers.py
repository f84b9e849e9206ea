"""A pipeline with a denoiser for early steps and one for late ones: each has its own steps, folder and policy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

import adatsq_pipe.stages.runtime  # noqa: F401  (registers the quantizer)
from adatsq_pipe.stages.architecture.layers import quantizable_linears
from adatsq_pipe.stages.denoiser.call import Call
from adatsq_pipe.stages.denoiser.conditions import Conditions
from adatsq_pipe.stages.denoiser.denoiser import Denoiser
from adatsq_pipe.stages.denoiser.outputs import leaves
from adatsq_pipe.stages.runtime.model import quantized_layers
from tests.bench import zoo
from tests.whole import harness


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan22") / "model"
    zoo.build("wan2.2", folder)
    path = folder / "sampling.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({"call": {**told["call"], "num_inference_steps": 4}}))
    return folder


def test_replay_and_teleport_are_bit_exact_over_the_boundary(model: Path) -> None:
    call = json.loads((model / "sampling.json").read_text())["call"]
    denoiser = Denoiser(str(model), dtype="float32", device="cpu", call=call)
    assert {name.split(".")[0] for name in quantizable_linears(denoiser.transformer)} == set(denoiser.parts)
    conditions, parts = Conditions(prompts=("a red circle", "a blue square"), seeds=(5, 6)), list[str]()
    run = denoiser.record(conditions, see=lambda j, seen: parts.append(seen.part))
    assert parts[0] == "transformer" and parts[-1] == "transformer_2" and sorted(parts) == parts
    assert torch.equal(denoiser.replay(conditions, run.outputs)[0], run.latents)
    for j, part in enumerate(parts):
        arrived = denoiser.teleport(conditions, run.outputs[:j])
        assert isinstance(arrived, Call) and arrived.part == part
        with torch.no_grad():
            got = leaves(denoiser.run(arrived))
        assert all(torch.equal(a, b) for a, b in zip(got, leaves(run.outputs[j]), strict=True))


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan22") / "run"
    done = harness.run(*harness.tiny(folder, model, "--set", "search.budget=4.0"))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.run
def test_each_has_its_policy_where_it_is_called(model: Path, run: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(run / "model")
    used = {}
    for part in ("transformer", "transformer_2"):
        policies = {
            tuple(bits < 16 for bits in layer.policy.tolist())
            for layer in quantized_layers(getattr(pipe, part)).values()
        }
        (used[part],) = policies
    assert all(a != b for a, b in zip(used["transformer"], used["transformer_2"], strict=True))
    assert used["transformer"][0] and used["transformer_2"][-1]
    summary = json.loads((run / "report" / "summary.json").read_text())
    assert 3 <= summary["bits"]["activations_mean"] <= 4
    assert summary["bits"]["activations_run"] == pytest.approx(summary["bits"]["activations_mean"])
    told = harness.run("inspect", str(model), "--json")
    assert [one["component"] for one in json.loads(told.stdout)["denoisers"]] == ["transformer", "transformer_2"]
    refused = harness.run("export", str(run), "--format", "auto-round")
    assert refused.returncode == 1 and "dequantized and self-contained" in refused.stderr


@pytest.mark.run
def test_exports_hold_both(run: Path, tmp_path: Path) -> None:
    """Dequantized, both parts have the weights that their codes stand for; self-contained, both follow their policy."""
    pipe = DiffusionPipeline.from_pretrained(run / "model", dtype=torch.bfloat16)
    for name in ("dequantized", "self-contained"):
        done = harness.run("export", str(run), "--format", name, "--out", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
    plain = DiffusionPipeline.from_pretrained(tmp_path / "dequantized", dtype=torch.bfloat16)
    for part in ("transformer", "transformer_2"):
        linears = quantizable_linears(getattr(plain, part))
        layers = quantized_layers(getattr(pipe, part))
        assert set(linears) == set(layers) and len(layers) > 5
        for name, layer in layers.items():
            assert torch.equal(linears[name].weight, layer.dequantized(torch.bfloat16).weight)
    env = {"PATH": os.environ["PATH"], "HF_HOME": str(tmp_path / "hf")}
    alone = [sys.executable, "-c", ALONE, str(tmp_path / "self-contained")]
    drawn = subprocess.run(alone, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert drawn.returncode == 0 and drawn.stdout.split()[-1] == "2", drawn.stderr


ALONE = """
import sys
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
assert not any(name.startswith("adatsq_pipe") for name in sys.modules)
found = [getattr(pipe, name) for name in ("transformer", "transformer_2")]
print(sum(any(type(m).__name__ == "QuantizedLinear" for m in part.modules()) for part in found))
"""
