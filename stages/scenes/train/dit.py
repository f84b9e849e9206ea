"""scenes/dit-xl: a class-conditional DiT, one class per coloured shape, sampled with DDIM.

The linear schedule of 1,000 steps with classifier-free guidance, as in DiT (Peebles & Xie 2212.09748). The model
predicts v (Salimans & Ho 2202.00512): with the noise as target, shapes were still ragged after 4,000 steps. Class 1000
is "no class", as in the stock pipeline; the classes between are never trained.

Large DiTs have salient channels (PTQ4DiT 2405.16005) that a model this small does not develop. `make_salient` adds them
after training, by a change of coordinates that leaves the model's function unchanged.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import Tensor, nn

from adatsq_pipe.stages.architecture import folding
from adatsq_pipe.stages.scenes.train import latents
from adatsq_pipe.stages.scenes.train.training import DEVICE, TrainConfig, generator, train_part
from adatsq_pipe.stages.scenes.world import captions, rendering

NO_CLASS = 1000
GUIDANCE = 2.0
SALIENT = 0.04
"""Share of an input's channels that `make_salient` raises."""
_CHUNK = 512


def transformer() -> DiTTransformer2DModel:
    """Six blocks of width 128 over 64 tokens."""
    return DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=latents.CHANNELS,
        out_channels=latents.CHANNELS,
        num_layers=6,
        sample_size=rendering.SIZE // 2,
        patch_size=2,
        num_embeds_ada_norm=NO_CLASS,
        attention_bias=True,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )


def scheduler() -> DDIMScheduler:
    """The noise schedule of training and sampling."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
    )


def without_shift(vae: AutoencoderKL) -> AutoencoderKL:
    """The same autoencoder without a shift, which DiTPipeline does not apply."""
    vae.register_to_config(shift_factor=None)
    return vae


@torch.no_grad()
def training_set(vae: AutoencoderKL, *, seed: int, scenes: int) -> tuple[Tensor, Tensor]:
    """Latents `[N, C, H, W]` and classes `[N]` of single things."""
    rng = np.random.default_rng([seed, 7])
    classes = rng.integers(len(captions.CLASSES), size=scenes)
    latents_of_all = []
    for start in range(0, scenes, _CHUNK):
        things = [rendering.place(captions.class_request(int(c)), rng) for c in classes[start : start + _CHUNK]]
        latents_of_all.append(vae.encode(rendering.render(things)).latent_dist.mean * vae.config.scaling_factor)
    return torch.cat(latents_of_all), torch.from_numpy(classes)


def train(
    vae: AutoencoderKL,
    work: Path,
    config: TrainConfig,
    *,
    scenes: int,
    start: nn.Module | None = None,
) -> DiTTransformer2DModel:
    """The running average after `config.steps` steps; a class is dropped once in ten."""
    clean, classes = training_set(vae, seed=config.seed, scenes=scenes)
    torch.manual_seed(config.seed)
    model = transformer().eval()
    if start is not None:
        model.load_state_dict(start.state_dict())
    forward = config.compiled(model)
    schedule = scheduler()

    def loss(step: int) -> Tensor:
        source = generator(config.seed, "dit", step)
        rows = torch.randint(len(clean), (config.batch,), generator=source)
        noise = torch.randn((config.batch, *clean.shape[1:]), generator=source)
        t = torch.randint(1000, (config.batch,), generator=source)
        dropped = torch.rand(config.batch, generator=source) < 0.1
        labels = torch.where(dropped, NO_CLASS, classes[rows]).to(DEVICE)
        picked, noise, t = clean[rows].to(DEVICE), noise.to(DEVICE), t.to(DEVICE)
        noisy = schedule.add_noise(picked, noise, t)
        predicted: Tensor = forward(noisy, timestep=t, class_labels=labels, return_dict=False)[0]
        target: Tensor = schedule.get_velocity(picked, noise, t)
        return (predicted - target).square().mean()

    smooth = train_part("dit", model, loss, steps=config.steps, rate=config.rate, work=work)
    assert isinstance(smooth, DiTTransformer2DModel)
    return smooth


def make_salient(model: DiTTransformer2DModel, gain: float, *, seed: int) -> None:
    """Raise a share SALIENT of the input channels of attention and feed-forward by sqrt(`gain`) to `gain`, in place.

    The producer of a raised channel (the modulation, the value projection) is multiplied by a factor and its consumers
    are divided by it, so the model computes the same function up to rounding. `seed` draws the channels and factors.
    """
    rng = np.random.default_rng([seed, 8])
    for index, block in enumerate(model.transformer_blocks):
        width = block.attn1.to_v.out_features
        for fold in _inputs(f"transformer_blocks.{index}", width):
            raised = rng.choice(width, round(SALIENT * width), replace=False)
            factor = torch.ones(width)
            factor[raised] = torch.from_numpy(gain ** rng.uniform(0.5, 1, len(raised))).float()
            folding.apply(model, fold, factor)


def _inputs(block: str, width: int) -> tuple[folding.Fold, ...]:
    """The inputs of a block's linear layers that the layer before them can scale."""
    shift, scale, _, feed_shift, feed_scale, _ = (slice(i * width, (i + 1) * width) for i in range(6))
    modulation, value = f"{block}.norm1.linear", f"{block}.attn1.to_v"
    qkv = tuple(f"{block}.attn1.{name}" for name in ("to_q", "to_k", "to_v"))
    return (
        folding.Fold(producer=modulation, consumers=qkv, shift=shift, scale=scale),
        folding.Fold(producer=modulation, consumers=(f"{block}.ff.net.0.proj",), shift=feed_shift, scale=feed_scale),
        folding.Fold(producer=value, consumers=(f"{block}.attn1.to_out.0",), shift=slice(0, width), scale=None),
    )


def pipeline(vae: AutoencoderKL, denoiser: DiTTransformer2DModel) -> DiTPipeline:
    """The stock pipeline around the trained parts; its labels are named by colour and shape."""
    names = {i: " ".join(thing) for i, thing in enumerate(captions.CLASSES)}
    pipe = DiTPipeline(transformer=denoiser, vae=vae, scheduler=scheduler(), id2label=names)
    pipe.register_to_config(id2label=names)
    return pipe


def call() -> dict[str, int | float]:
    """The arguments of a pipeline call, stored as sampling.json."""
    return {"num_inference_steps": 50, "guidance_scale": GUIDANCE}
