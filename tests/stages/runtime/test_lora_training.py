"""A LoRA trained on a quantized model: gradients, gradient checkpointing, a loss that falls, and the file of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from torch import Tensor

import adatsq_pipe.stages.runtime as runtime
from adatsq_pipe.stages.runtime.policy_hook import remove_policy_hook
from tests.stages.runtime.folders import quantize
from tests.stages.runtime.test_families import TIMESTEPS

peft = pytest.importorskip("peft", reason="a LoRA needs peft, which the dev dependencies name")

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_mlp", "proj_out"]


@pytest.fixture(scope="module")
def folder(family: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("quantized")
    return quantize(family("flux"), place / "flux", TIMESTEPS["flux"], block=16, rank=2, smoothed=True)


def model_for(folder: Path, execution: str = "simulate", dtype: torch.dtype = torch.float32) -> Any:
    """The transformer with a LoRA to train, as diffusers' training scripts set it up."""
    model = FluxPipeline.from_pretrained(folder, dtype=dtype).transformer
    runtime.execute(model, execution)
    model.requires_grad_(False)
    config = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights="gaussian", target_modules=TARGETS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.add_adapter(config)
        for parameter in trained(model):
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def trained(model: Any) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def call(model: Any) -> Tensor:
    """Two pictures of random latents, at a timestep that rounds to 3 bits."""
    random, dtype = torch.Generator().manual_seed(3), model.dtype
    config = model.config

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(dtype)

    out: Tensor = model(
        hidden_states=noise(2, 16, config.in_channels),
        encoder_hidden_states=noise(2, 4, config.joint_attention_dim),
        pooled_projections=noise(2, config.pooled_projection_dim),
        timestep=torch.ones(2, dtype=dtype),
        guidance=torch.full((2,), 3.5, dtype=dtype),
        img_ids=torch.zeros(16, 3, dtype=dtype),
        txt_ids=torch.zeros(4, 3, dtype=dtype),
        return_dict=False,
    )[0]
    return out


def gradients(model: Any) -> list[Tensor]:
    model.zero_grad()
    call(model).square().mean().backward()
    found = [parameter.grad for parameter in trained(model)]
    assert found and all(grad is not None and grad.isfinite().all() and grad.any() for grad in found)
    return [grad.clone() for grad in found if grad is not None]


def near(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return all((a - b).norm() < 1e-3 * b.norm() for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("execution", runtime.EXECUTIONS)
def test_gradients_without_rounding_are_those_of_plain_linears(folder: Path, execution: str) -> None:
    quantized, dense = model_for(folder, execution), model_for(folder)
    remove_policy_hook(quantized)
    dense.dequantize()
    assert near(gradients(quantized), gradients(dense))


@pytest.mark.parametrize("execution", ["simulate", "packed"])
def test_checkpointing_gives_the_same_gradients(folder: Path, execution: str) -> None:
    model = model_for(folder, execution).train()
    wanted = gradients(model)
    model.enable_gradient_checkpointing()
    assert near(gradients(model), wanted)


@pytest.mark.parametrize("execution", ["simulate", "packed"])
def test_training_brings_the_output_to_a_target_and_the_lora_reloads(
    folder: Path, execution: str, tmp_path: Path
) -> None:
    model, goal = model_for(folder, execution), model_for(folder)
    with torch.no_grad():
        goal.set_adapters("default", 2.0)
        target = call(goal)
    optimizer = torch.optim.Adam(trained(model), 0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (call(model) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    FluxPipeline.save_lora_weights(tmp_path, transformer_lora_layers=peft.get_peft_model_state_dict(model))
    pipe = FluxPipeline.from_pretrained(folder)
    runtime.execute(pipe.transformer, execution)
    pipe.load_lora_weights(tmp_path)
    pipe.set_adapters(pipe.get_active_adapters(), 2.0)  # what is saved lacks alpha over rank, 8 over 4
    with torch.no_grad():
        assert torch.allclose(call(pipe.transformer), call(model), atol=1e-4)


def test_half_precision_with_a_lora_in_float32_as_training_scripts_have_it(folder: Path) -> None:
    model = model_for(folder, "packed", torch.bfloat16)
    for parameter in trained(model):
        parameter.data = parameter.data.float()
    assert {grad.dtype for grad in gradients(model)} == {torch.float32}


def test_a_model_wrapped_by_peft_follows_its_policy(folder: Path) -> None:
    model, wrapped = (FluxPipeline.from_pretrained(folder).transformer for _ in range(2))
    wrapped = peft.get_peft_model(wrapped, peft.LoraConfig(r=2, target_modules=TARGETS))
    assert torch.equal(call(wrapped), call(model))
    assert wrapped.base_model.model.transformer_blocks[0].attn.to_q.base_layer.bits == 3
    with pytest.raises(ValueError, match="cannot be fused into low-bit codes"):
        wrapped.merge_and_unload()
