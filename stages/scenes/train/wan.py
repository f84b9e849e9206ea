"""scenes/wan: text to video with a UMT5 encoder of motions, a small Wan autoencoder, 25 steps of UniPC.

Flow matching with the stock pipeline's clock: timesteps are 1000 t, t = 1 is noise, and the model predicts noise minus
clip. Text states are zero after a caption's last word, as the pipeline pads them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from adatsq_pipe.stages.scenes.train import components, flux
from adatsq_pipe.stages.scenes.train.training import DEVICE, TrainConfig, generator, train_part
from adatsq_pipe.stages.scenes.world import motions, rendering
from adatsq_pipe.stages.scenes.world.captions import COLOURS, SHAPES
from adatsq_pipe.stages.scenes.world.motions import DIRECTIONS, SPEEDS, Motion
from adatsq_pipe.storage.files import write_bytes

CHANNELS = 8
STEPS = 25
GUIDANCE = 2.0
SHIFT = 2.0
_CHUNK = 64
_ANSWERS = {"colour": COLOURS, "shape": SHAPES, "direction": DIRECTIONS, "speed": SPEEDS}


class MotionTextEncoder(nn.Module):
    """UMT5 with linear heads that read the attributes from every state. The heads are dropped after training."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = components.umt5_text_encoder()
        self.heads = nn.ModuleDict({k: nn.Linear(components.TEXT_WIDTH, len(v)) for k, v in _ANSWERS.items()})

    def states(self, ids_BT: Tensor) -> Tensor:
        """The denoiser's text input `[B, T, TEXT_WIDTH]`, zero after the caption's end."""
        mask = (ids_BT != self.text_encoder.config.pad_token_id).long()
        states: Tensor = self.text_encoder(ids_BT, mask)[0] * mask.unsqueeze(-1)
        return states

    def loss(self, requests: list[Motion]) -> Tensor:
        """Mean cross-entropy of the heads over all words."""
        ids = token_ids([motion.caption for motion in requests]).to(DEVICE)
        states, is_word = self.states(ids), ids != self.text_encoder.config.pad_token_id
        parts = []
        for name, head in self.heads.items():
            answers = [list(_ANSWERS[name]).index(getattr(motion, name)) for motion in requests]
            right = torch.tensor(answers, device=ids.device)
            parts.append(F.cross_entropy(head(states[is_word]), right[:, None].expand_as(ids)[is_word]))
        return torch.stack(parts).mean()


def token_ids(captions: list[str]) -> Tensor:
    """Ids `[B, TEXT_LENGTH]`, padded."""
    words = components.tokenizer(motions.WORDS)
    return torch.tensor(words(captions, padding="max_length", max_length=components.TEXT_LENGTH).input_ids)


def transformer() -> WanTransformer3DModel:
    """2 M parameters over 192 tokens: three latent frames of 8 x 8 patches."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=components.TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=512,
        num_layers=6,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )


def _clips(seed: tuple[int, ...], count: int) -> tuple[list[Motion], Tensor]:
    """`count` training motions and their clips `[count, 3, FRAMES, SIZE, SIZE]`."""
    rng = np.random.default_rng(list(seed))
    requests = [motions.draw_motion(rng, split="train") for _ in range(count)]
    clips = rendering.render_clips([rendering.place_motion(motion, rng) for motion in requests])
    return requests, clips.transpose(1, 2)


def train_text_encoder(work: Path, *, steps: int, seed: int) -> MotionTextEncoder:
    """The text encoder, trained to keep the attributes of motions in its states, and frozen."""
    torch.manual_seed(seed)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 2, step])
        return encoder.loss([motions.draw_motion(rng, split="train") for _ in range(128)])

    encoder = MotionTextEncoder()
    smooth = train_part("reader", encoder, loss, steps=steps, rate=3e-3, work=work, average=0.98)
    assert isinstance(smooth, MotionTextEncoder)
    return smooth


def train_autoencoder(work: Path, *, steps: int, seed: int) -> AutoencoderKLWan:
    """An autoencoder of clips, frozen; its config holds the latents' mean and deviation per channel."""
    torch.manual_seed(seed)
    vae = components.video_autoencoder(CHANNELS)

    def loss(step: int) -> Tensor:
        clip = _clips((seed, 1, step), 12)[1].to(DEVICE)
        posterior = vae.encode(clip).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator(seed, "autoencoder", step)).to(DEVICE)
        restored = vae.decode(posterior.mean + posterior.std * noise).sample
        error: Tensor = (restored - clip).square().mean() + 1e-5 * posterior.kl().mean() / posterior.mean[0].numel()
        return error

    smooth = train_part("autoencoder", vae, loss, steps=steps, rate=2e-3, work=work, average=0.99, decay=0.0)
    assert isinstance(smooth, AutoencoderKLWan)
    with torch.no_grad():
        latents = smooth.encode(_clips((seed, 3), 128)[1]).latent_dist.mean.transpose(0, 1).flatten(1)
    smooth.register_to_config(
        latents_mean=[round(x, 4) for x in latents.mean(1).tolist()],
        latents_std=[round(x, 4) for x in latents.std(1).tolist()],
    )
    return smooth


@torch.no_grad()
def training_set(vae: AutoencoderKLWan, work: Path, *, seed: int, clips: int) -> dict[str, Tensor]:
    """`clips` captioned clips: `latents` fp16 `[N, C, F, H, W]`, normalised, and `ids` `[N, TEXT_LENGTH]`."""
    path = work / "training_set.safetensors"
    if path.exists():
        cached: dict[str, Tensor] = load_file(path)
        return cached
    mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (vae.config.latents_mean, vae.config.latents_std))
    latents, ids = [], []
    for chunk in range(clips // _CHUNK):
        requests, clip = _clips((seed, 4, chunk), _CHUNK)
        latents.append(((vae.encode(clip).latent_dist.mean - mean) / std).half())
        ids.append(token_ids([motion.caption for motion in requests]))
    tensors = {"latents": torch.cat(latents), "ids": torch.cat(ids)}
    write_bytes(path, save(tensors))
    return tensors


def train(
    encoder: MotionTextEncoder,
    clips: dict[str, Tensor],
    work: Path,
    config: TrainConfig,
    *,
    start: nn.Module | None = None,
) -> WanTransformer3DModel:
    """The running average after `config.steps` of flow matching, captions dropped once in ten."""
    torch.manual_seed(config.seed)
    encoder, model = encoder.to(DEVICE), transformer()
    if start is not None:
        model.load_state_dict(start.state_dict())
    forward = config.compiled(model)
    empty = token_ids([""])

    def loss(step: int) -> Tensor:
        source = generator(config.seed, "wan", step)
        rows = torch.randint(len(clips["ids"]), (config.batch,), generator=source)
        clean = clips["latents"][rows].float()
        noise = torch.randn(clean.shape, generator=source)
        t = torch.sigmoid(torch.randn(config.batch, generator=source) + flux.TIME_SHIFT)
        ids = torch.where(torch.rand(config.batch, 1, generator=source) < 0.1, empty, clips["ids"][rows])
        clean, noise, t, ids = (each.to(DEVICE) for each in (clean, noise, t, ids))
        with torch.no_grad(), torch.autocast(DEVICE.type, enabled=False):
            text = encoder.states(ids)
        x = torch.lerp(clean, noise, t.view(-1, 1, 1, 1, 1))
        velocity = forward(hidden_states=x, timestep=1000 * t, encoder_hidden_states=text, return_dict=False)[0]
        error: Tensor = (velocity.float() - (noise - clean)).square().mean()
        return error

    smooth = train_part("wan", model, loss, steps=config.steps, rate=config.rate, work=work, half=config.half)
    assert isinstance(smooth, WanTransformer3DModel)
    return smooth


def pipeline(vae: AutoencoderKLWan, encoder: MotionTextEncoder, denoiser: WanTransformer3DModel) -> WanPipeline:
    """The stock pipeline around the trained parts."""
    return WanPipeline(
        tokenizer=components.tokenizer(motions.WORDS),
        text_encoder=encoder.text_encoder,
        vae=vae,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT),
        transformer=denoiser,
    )


def call() -> dict[str, int | float]:
    """The arguments of a pipeline call, stored as sampling.json."""
    return {
        "height": rendering.SIZE,
        "width": rendering.SIZE,
        "num_frames": motions.FRAMES,
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "max_sequence_length": components.TEXT_LENGTH,
    }
