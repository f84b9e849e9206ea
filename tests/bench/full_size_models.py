"""Pipelines of full-size denoisers with random weights: the published config, weights of a sensible scale, bfloat16.

The autoencoder and the text encoder are small models of the published classes: a run quantizes neither.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from adatsq_pipe.stages.scenes.train import components

CONFIGS = Path(__file__).parents[1] / "zoo" / "configs"
DONE = "sampling.json"
"""Written last: a folder that has it is complete."""
BRANCH_ENDS = re.compile(r"(to_out\.0|ff\.net\.2|ffn\.net\.2)$")
"""Linears whose output is added to the residual stream."""
CAPTIONS = ("a red circle", "a blue square", "a white cross", "a green triangle", "two red squares", "a blue circle")


@dataclass(frozen=True, kw_only=True)
class FullSize:
    """A model of the bench."""

    build: Callable[[int | None], DiffusionPipeline]
    """With torch's default dtype for its weights, of all blocks or the first few."""
    call: Mapping[str, object]
    """Arguments of every call of the pipeline, besides the number of steps."""
    captions: tuple[str, ...]
    """Calibration takes them from the front, evaluation from the end."""
    options: tuple[str, ...] = ()
    """Arguments of the call that the options of the bench change."""


def _config(name: str, blocks: int | None = None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return {**found, "num_layers": blocks} if blocks else found


def dit_xl(blocks: int | None = None) -> DiTPipeline:
    """DiT-XL/2 at 256 x 256, with Stable Diffusion's autoencoder made narrow."""
    levels = 4
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(16,) * levels, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=8, sample_size=256,
    )  # fmt: skip
    return DiTPipeline(
        transformer=DiTTransformer2DModel.from_config(_config("dit-xl-2", blocks)), vae=vae, scheduler=DDIMScheduler()
    )


def wan(blocks: int | None = None) -> WanPipeline:
    """Wan2.1-T2V-1.3B, with its autoencoder made narrow and a text encoder of one layer."""
    config, words = _config("wan2.1-t2v-1.3b", blocks), components.tokenizer()
    text = UMT5Config(
        vocab_size=len(words), d_model=config["text_dim"], d_kv=64, d_ff=64, num_layers=1, num_heads=8,
        feed_forward_proj="gated-gelu", dropout_rate=0.0,
    )  # fmt: skip
    return WanPipeline(
        tokenizer=words,
        text_encoder=UMT5EncoderModel(text),
        transformer=WanTransformer3DModel.from_config(config),
        vae=AutoencoderKLWan(
            base_dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1, temperal_downsample=[False, True, True]
        ),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )


MODELS: Mapping[str, FullSize] = {
    "dit-xl": FullSize(build=dit_xl, call={"guidance_scale": 4.0}, captions=tuple(map(str, range(0, 1000, 37)))),
    "wan-1.3b": FullSize(
        build=wan,
        call={"height": 128, "width": 128, "num_frames": 5, "guidance_scale": 5.0, "max_sequence_length": 32},
        captions=CAPTIONS,
        options=("height", "width", "num_frames"),
    ),
}


def scale_weights(module: nn.Module, layers: int) -> None:
    """Random weights under which activations keep their size: a linear or convolution keeps the variance of what it
    reads, the ends of the 2 `layers` branches add up to one, biases are small."""
    for name, part in module.named_modules():
        if isinstance(part, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            end = (2 * layers) ** -0.5 if BRANCH_ENDS.search(name) else 1.0
            nn.init.normal_(part.weight, std=end / math.sqrt(part.weight[0].numel()))
            if part.bias is not None:
                nn.init.normal_(part.bias, std=0.02)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight)


def written(name: str, cache: Path, blocks: int | None = None) -> Path:
    """The folder of the pipeline below `cache`, made once, with all its blocks or so many; its weights are the same on
    every machine."""
    folder, model = cache / (f"{name}-{blocks}" if blocks else name), MODELS[name]
    if (folder / DONE).exists():
        return folder
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        pipe = model.build(blocks)
        scale_weights(pipe.transformer, pipe.transformer.config.num_layers)
    finally:
        torch.set_default_dtype(default)
    pipe.save_pretrained(folder)
    (folder / DONE).write_text(json.dumps({"call": dict(model.call)}))
    return folder
