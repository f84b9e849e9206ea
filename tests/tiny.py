"""Builders of the tiny pipelines: one block or two of the real classes, random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import Qwen3Config, Qwen3Model, UMT5Config, UMT5EncoderModel

from adatsq_pipe.stages.scenes.train import components

Built = tuple[Any, dict[str, object]]


def flux() -> Built:
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=components.TEXT_WIDTH, pooled_projection_dim=components.TEXT_WIDTH, guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=components.autoencoder(4),
        text_encoder=components.clip_text_encoder(),
        tokenizer=components.tokenizer(),
        text_encoder_2=components.t5_text_encoder(),
        tokenizer_2=components.tokenizer(),
        transformer=transformer,
    )
    return pipe, {"height": 16, "width": 16, "num_inference_steps": 4, "max_sequence_length": 16}


def z_image() -> Built:
    words = components.tokenizer()
    words.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    text = Qwen3Model(
        Qwen3Config(
            vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
        )
    )  # fmt: skip
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, qk_norm=True, cap_feat_dim=16, rope_theta=256.0, t_scale=1000.0, axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )  # fmt: skip
    with torch.no_grad():
        for token in (transformer.x_pad_token, transformer.cap_pad_token):
            token.copy_(torch.ones_like(token))
    pipe = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=components.autoencoder(16),
        text_encoder=text,
        tokenizer=words,
        transformer=transformer,
    )
    return pipe, {
        "height": 16, "width": 16, "num_inference_steps": 3, "guidance_scale": 3.0, "max_sequence_length": 16,
    }  # fmt: skip


def wan() -> Built:
    words = components.tokenizer()
    text = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(words), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=16, freq_dim=32, ffn_dim=32, num_layers=1, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )  # fmt: skip
    pipe = WanPipeline(
        tokenizer=words,
        text_encoder=text,
        vae=AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        ),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=transformer,
    )  # fmt: skip
    return pipe, {
        "height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 3, "guidance_scale": 3.0,
        "max_sequence_length": 16,
    }  # fmt: skip


def dit() -> Built:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        patch_size=2, num_embeds_ada_norm=1000, attention_bias=True, activation_fn="gelu-approximate",
        norm_type="ada_norm_zero", norm_elementwise_affine=False,
    )  # fmt: skip
    pipe = DiTPipeline(transformer=transformer, vae=components.autoencoder(4), scheduler=DDIMScheduler())
    return pipe, {"num_inference_steps": 3, "guidance_scale": 3.0}


BUILDERS: dict[str, Callable[[], Built]] = {"flux": flux, "z-image": z_image, "wan": wan, "dit": dit}
