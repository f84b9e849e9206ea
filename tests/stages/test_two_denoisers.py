"""A pipeline with a denoiser for early steps and one for late ones: each has its own steps, folder and policy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

import adatsq_pipe.stages.runtime  # noqa: F401  (registers the quantizer)
from adatsq_pipe.stages.denoiser import Call, Conditions, Denoiser
from adatsq_pipe.stages.layers import quantizable_linears
from adatsq_pipe.stages.outputs import leaves
from adatsq_pipe.stages.runtime.linear import quantized_layers
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


def test_each_has_its_policy_where_it_is_called(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = harness.run(*harness.tiny(run, model, "--set", "search.budget=4.0"))
    assert done.returncode == 0, done.stderr
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
    told = harness.run("inspect", str(model), "--json")
    assert [one["component"] for one in json.loads(told.stdout)["denoisers"]] == ["transformer", "transformer_2"]
    refused = harness.run("export", str(run), "--format", "dequantized")
    assert refused.returncode == 1 and "several denoisers" in refused.stderr
