"""Tiny pipelines of newer models. Where one expects a vision-language model, a small language model reads its prompts:
pipelines use hidden states alone."""

from __future__ import annotations

import torch
from diffusers import (
    AnyFlowPipeline,
    AnyFlowTransformer3DModel,
    AutoencoderKLHunyuanImage,
    AutoencoderKLHunyuanVideo,
    BriaFiboPipeline,
    BriaFiboTransformer2DModel,
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    NucleusMoEImagePipeline,
    NucleusMoEImageTransformer2DModel,
    PRXPipeline,
    PRXTransformer2DModel,
    UniPCMultistepScheduler,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from diffusers.schedulers import FlowMapEulerDiscreteScheduler

from adatsq_pipe.stages.scenes.train import components
from tests.zoo.parts import (
    SQUARE,
    T5,
    WIDTH,
    Built,
    autoencoder_flux2,
    autoencoder_qwen,
    autoencoder_wan,
    clip,
    fill,
    gemma2,
    qwen3,
    qwen3_head,
    qwen3_vl,
    qwen_vl,
    umt5,
    words,
)


def flux2() -> Built:
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=3 * WIDTH, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    pipe = Flux2Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=autoencoder_flux2(),
        text_encoder=qwen3_head(31), tokenizer=words(),
    )  # fmt: skip
    return pipe, {**SQUARE, "max_sequence_length": 64}


def krea2() -> Built:
    transformer = Krea2Transformer2DModel(
        in_channels=16, num_layers=1, attention_head_dim=16, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32, timestep_embed_dim=16, text_hidden_dim=WIDTH, num_text_layers=12,
        text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=16, num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    pipe = Krea2Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=autoencoder_qwen(),
        text_encoder=qwen3_vl(36), tokenizer=words(),
    )  # fmt: skip
    return pipe, {**SQUARE, "height": 32, "width": 32, "max_sequence_length": 48}


def ernie() -> Built:
    transformer = ErnieImageTransformer2DModel(
        hidden_size=32, num_attention_heads=2, num_layers=2, ffn_hidden_size=32, in_channels=16, out_channels=16,
        text_in_dim=WIDTH, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    fill(transformer)
    pipe = ErnieImagePipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=autoencoder_flux2(),
        text_encoder=qwen3(3), tokenizer=words(),
    )  # fmt: skip
    return pipe, {**SQUARE, "height": 32, "width": 32, "use_pe": False}


def prx() -> Built:
    transformer = PRXTransformer2DModel(
        in_channels=4, context_in_dim=WIDTH, hidden_size=32, num_heads=2, depth=2, axes_dim=[8, 8]
    )
    fill(transformer)
    pipe = PRXPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=components.autoencoder(4),
        text_encoder=gemma2(), tokenizer=words(), default_sample_size=16,
    )  # fmt: skip
    return pipe, {**SQUARE, "use_resolution_binning": False, "skip_text_cleaning": True}


def bria_fibo() -> Built:
    transformer = BriaFiboTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=2 * WIDTH, text_encoder_dim=WIDTH, axes_dims_rope=[4, 6, 6],
    )  # fmt: skip
    pipe = BriaFiboPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=autoencoder_wan(),
        text_encoder=qwen3_head(3), tokenizer=words(),
    )  # fmt: skip
    return pipe, {**SQUARE, "height": 64, "width": 64, "negative_prompt": "a circle", "max_sequence_length": 16}


def hunyuan_image() -> Built:
    transformer = HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, text_embed_dim=WIDTH, text_embed_2_dim=T5, rope_axes_dim=(8, 8),
    )  # fmt: skip
    vae = AutoencoderKLHunyuanImage(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 32), layers_per_block=1,
        spatial_compression_ratio=2, sample_size=16, scaling_factor=1.0,
    )  # fmt: skip
    pipe = HunyuanImagePipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=qwen_vl(3),
        tokenizer=words(), text_encoder_2=components.t5_text_encoder(), tokenizer_2=words(),
    )  # fmt: skip
    return pipe, {"height": 16, "width": 16, "num_inference_steps": 2}


def kandinsky5_video() -> Built:
    transformer = Kandinsky5Transformer3DModel(
        in_text_dim=WIDTH, in_text_dim2=T5, time_dim=16, model_dim=32, ff_dim=32, num_text_blocks=1,
        num_visual_blocks=1, axes_dims=(4, 6, 6),
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4
    )
    fill(transformer)
    pipe = Kandinsky5T2VPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=qwen_vl(),
        tokenizer=words(), text_encoder_2=clip(), tokenizer_2=words(77),
    )  # fmt: skip
    return pipe, {**SQUARE, "num_frames": 5, "max_sequence_length": 16}


def wan_vace() -> Built:
    transformer = WanVACETransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=WIDTH, freq_dim=32, ffn_dim=32, num_layers=2,
        rope_max_seq_len=32, vace_layers=[0, 1], vace_in_channels=96,
    )  # fmt: skip
    pipe = WanVACEPipeline(
        transformer=transformer, vae=autoencoder_wan(), text_encoder=umt5(), tokenizer=words(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )  # fmt: skip
    return pipe, {**SQUARE, "num_frames": 5, "max_sequence_length": 12}


def anyflow() -> Built:
    transformer = AnyFlowTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=WIDTH, freq_dim=32, ffn_dim=32, num_layers=2,
        rope_max_seq_len=32,
    )  # fmt: skip
    pipe = AnyFlowPipeline(
        transformer=transformer, vae=autoencoder_wan(), text_encoder=umt5(), tokenizer=words(),
        scheduler=FlowMapEulerDiscreteScheduler(),
    )  # fmt: skip
    return pipe, {**SQUARE, "num_frames": 5, "max_sequence_length": 12}


def nucleus() -> Built:
    """Grouped experts, whose weights are raw parameters."""
    transformer = NucleusMoEImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=4,
        joint_attention_dim=WIDTH, axes_dims_rope=(4, 6, 6), num_experts=4, moe_intermediate_dim=32,
        capacity_factors=[2.0, 2.0],
        dense_moe_strategy="leave_first_block_dense",
    )  # fmt: skip
    with torch.no_grad():  # the class leaves its experts as memory was
        for parameter in transformer.parameters():
            parameter.normal_(std=0.1)
    pipe = NucleusMoEImagePipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=autoencoder_qwen(),
        text_encoder=qwen_vl(9), processor=words(),
    )  # fmt: skip
    return pipe, {**SQUARE, "height": 32, "width": 32, "max_sequence_length": 64}


BUILDERS = {
    "flux2": flux2, "krea2": krea2, "ernie-image": ernie, "prx": prx, "bria-fibo": bria_fibo,
    "hunyuan-image": hunyuan_image, "kandinsky5-video": kandinsky5_video, "wan-vace": wan_vace, "anyflow": anyflow,
    "nucleus-moe": nucleus,
}  # fmt: skip
