"""A quantized folder as a user meets it: its loaders, the policy in a pipeline's call, and what loading needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline, FluxTransformer2DModel

import adatsq_pipe.stages.runtime  # noqa: F401
from adatsq_pipe.stages.export.model_card import LOADING
from adatsq_pipe.stages.runtime.model import quantized_layers
from tests.conftest import PATIENCE
from tests.stages.runtime.folders import quantize

TIMESTEPS = [1.0, 0.7, 0.4]
POLICY = [3, 4, 8]
"""Of every layer of `quantize`."""


@pytest.fixture(scope="module")
def model(tiny_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize(tiny_flux, tmp_path_factory.mktemp("quantized") / "flux", TIMESTEPS)


def test_every_loader_loads_it(model: Path) -> None:
    for load in (FluxPipeline.from_pretrained, DiffusionPipeline.from_pretrained):
        assert quantized_layers(load(model).transformer)
    bare = FluxTransformer2DModel.from_pretrained(model / "transformer", dtype=torch.float16)
    layer = next(iter(quantized_layers(bare).values()))
    assert layer.scale.dtype == torch.bfloat16 and layer.codes.dtype == torch.uint8


@pytest.mark.parametrize("steps", [3, 7])
def test_a_pipeline_call_follows_the_policy_at_any_number_of_steps(steps: int, model: Path) -> None:
    """The transformer of Flux is called with the timestep over 1000: its nearest in TIMESTEPS says the bits."""
    pipe = FluxPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    layers, seen, wanted = list(quantized_layers(pipe.transformer).values()), list[set[int]](), list[set[int]]()
    layers[0].register_forward_hook(lambda *_: seen.append({layer.bits for layer in layers}))
    call = json.loads((model / "sampling.json").read_text())["call"]
    pipe("a red circle", **{**call, "num_inference_steps": steps})
    for timestep in pipe.scheduler.timesteps:
        distances = [abs(float(timestep) / 1000 - level) for level in TIMESTEPS]
        wanted.append({POLICY[distances.index(min(distances))]})
    assert seen == wanted and len(seen) == steps


_SCRIPT = """
import sys
for name in ("ray", "zarr", "pyarrow", "pydantic", "click"):
    sys.modules[name] = None
from diffusers import FluxTransformer2DModel
try:
    FluxTransformer2DModel.from_pretrained(sys.argv[1])
except ValueError as error:
    print(error)
import adatsq_pipe.stages.runtime
model = FluxTransformer2DModel.from_pretrained(sys.argv[1])
print(sum(type(module).__name__ == "QuantizedLinear" for module in model.modules()))
"""


@pytest.mark.run
def test_one_import_is_all_that_loading_needs(model: Path) -> None:
    """In an interpreter without Ray, Zarr and the rest. Without the import diffusers names what the card explains."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(model / "transformer")], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    refusal, layers = done.stdout.strip().splitlines()
    assert "Unknown quantization type, got adatsq" in refusal and "Unknown quantization type, got adatsq" in LOADING
    count = len(json.loads((model / "transformer" / "config.json").read_text())["quantization_config"]["layers"])
    assert int(layers) == count > 0
