"""dit-xl: salient channels change what layers read and not what the model computes."""

from __future__ import annotations

import torch

from adatsq_pipe.stages.scenes.train import dit
from adatsq_pipe.stages.scenes.train.training import generator


def test_salient_channels_change_what_layers_read_and_not_the_output() -> None:
    model = dit.transformer().double().eval()
    source = generator(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=source))
    inputs: dict[str, list[torch.Tensor]] = {}
    for name in ("attn1.to_q", "attn1.to_out.0", "ff.net.0.proj"):
        layer = model.get_submodule(f"transformer_blocks.2.{name}")
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.setdefault(name, []).append(args[0]))
    latents = torch.randn(3, 8, 16, 16, generator=source).double()
    call = {"timestep": torch.tensor([10, 500, 990]), "class_labels": torch.tensor([0, 7, dit.NO_CLASS])}

    def output() -> torch.Tensor:
        with torch.no_grad():
            sample: torch.Tensor = model(latents, **call).sample
            return sample

    before = output()
    dit.make_salient(model, 1.0, seed=5)
    assert torch.allclose(output(), before, rtol=0, atol=1e-12)
    dit.make_salient(model, 16.0, seed=5)
    assert torch.allclose(output(), before, rtol=1e-6, atol=1e-9)
    for name, (first, _, last) in inputs.items():
        gains = (last.abs().amax((0, 1)) / first.abs().amax((0, 1))).sort().values
        assert torch.allclose(gains[:-5], torch.ones_like(gains[:-5]), atol=1e-5), name
        assert gains[-5] >= 4 - 1e-5 and gains[-1] <= 16 + 1e-5, f"{name}: 4 % of 128 channels are 5"
