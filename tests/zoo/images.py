"""Tiny text-to-image pipelines whose text encoders are CLIP, T5, BERT or Gemma."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    BriaPipeline,
    BriaTransformer2DModel,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogVideoXDDIMScheduler,
    CogView3PlusPipeline,
    CogView3PlusTransformer2DModel,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanDiT2DModel,
    HunyuanDiTPAGPipeline,
    HunyuanDiTPipeline,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPAGPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPAGPipeline,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3PAGPipeline,
    StableDiffusion3Pipeline,
)

from adatsq_pipe.stages.scenes.train import components
from tests.zoo.parts import (
    SQUARE,
    T5,
    WIDTH,
    Built,
    autoencoder,
    autoencoder_dc,
    bert,
    clip_projected,
    gemma,
    gemma2,
    umt5,
    words,
)

PLAIN = {**SQUARE, "use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 12}


def flux_schnell() -> Built:
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=T5, pooled_projection_dim=T5, guidance_embeds=False, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=components.autoencoder(4), transformer=transformer,
        text_encoder=components.clip_text_encoder(), tokenizer=components.tokenizer(),
        text_encoder_2=components.t5_text_encoder(), tokenizer_2=components.tokenizer(),
    )  # fmt: skip
    return pipe, {"height": 16, "width": 16, "num_inference_steps": 2, "guidance_scale": 0.0, "max_sequence_length": 12}


def _sd3(kind: Any, **more: object) -> Built:
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=T5, caption_projection_dim=32, pooled_projection_dim=T5, out_channels=4,
        pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    pipe = kind(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=components.autoencoder(4),
        text_encoder=clip_projected(), tokenizer=words(77), text_encoder_2=clip_projected(), tokenizer_2=words(77),
        text_encoder_3=components.t5_text_encoder(), tokenizer_3=words(),
    )  # fmt: skip
    return pipe, {**SQUARE, "max_sequence_length": 12, **more}


def sd3() -> Built:
    return _sd3(StableDiffusion3Pipeline)


def sd3_pag() -> Built:
    pipe, call = _sd3(StableDiffusion3PAGPipeline, pag_scale=1.0)
    return pipe, call


def _pixart(kind: Any, **more: object) -> Built:
    transformer = PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=4, caption_channels=T5,
        in_channels=4, cross_attention_dim=32, out_channels=8, use_additional_conditions=False,
    )  # fmt: skip
    pipe = kind(
        transformer=transformer, scheduler=DPMSolverMultistepScheduler(), vae=components.autoencoder(4),
        text_encoder=components.t5_text_encoder(), tokenizer=words(),
    )  # fmt: skip
    return pipe, {**PLAIN, **more}


def pixart_alpha() -> Built:
    return _pixart(PixArtAlphaPipeline)


def pixart_sigma() -> Built:
    return _pixart(PixArtSigmaPipeline)


def pixart_sigma_pag() -> Built:
    return _pixart(PixArtSigmaPAGPipeline, pag_scale=1.0)


def _sana(kind: Any, scheduler: Any, *, guidance: bool = False, **more: object) -> Built:
    transformer = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=16,
        num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=WIDTH,
        sample_size=32, guidance_embeds=guidance, qk_norm="rms_norm_across_heads" if guidance else None,
    )  # fmt: skip
    pipe = kind(
        transformer=transformer, scheduler=scheduler, vae=autoencoder_dc(), text_encoder=gemma2(), tokenizer=words()
    )
    return pipe, {**PLAIN, "height": 32, "width": 32, "complex_human_instruction": "", **more}


def sana() -> Built:
    return _sana(SanaPipeline, FlowMatchEulerDiscreteScheduler(shift=7.0))


def sana_pag() -> Built:
    return _sana(SanaPAGPipeline, FlowMatchEulerDiscreteScheduler(shift=7.0), pag_scale=1.0)


def sana_sprint() -> Built:
    return _sana(SanaSprintPipeline, SCMScheduler(), guidance=True)


def _hunyuan_dit(kind: Any, **more: object) -> Built:
    transformer = HunyuanDiT2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=4, in_channels=4,
        cross_attention_dim=32, cross_attention_dim_t5=T5, pooled_projection_dim=16, hidden_size=32,
    )  # fmt: skip
    pipe = kind(
        transformer=transformer, scheduler=DDPMScheduler(), vae=autoencoder(4, 4), text_encoder=bert(),
        tokenizer=words(77), text_encoder_2=components.t5_text_encoder(), tokenizer_2=words(256), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return pipe, {**SQUARE, "height": 64, "width": 64, "use_resolution_binning": False, **more}


def hunyuan_dit() -> Built:
    return _hunyuan_dit(HunyuanDiTPipeline)


def hunyuan_dit_pag() -> Built:
    return _hunyuan_dit(HunyuanDiTPAGPipeline, pag_scale=1.0)


def lumina() -> Built:
    transformer = LuminaNextDiT2DModel(
        sample_size=8, in_channels=4, hidden_size=32, num_layers=2, num_attention_heads=4, num_kv_heads=4,
        multiple_of=16, cross_attention_dim=WIDTH,
    )  # fmt: skip
    pipe = LuminaPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=autoencoder(4, 4),
        text_encoder=gemma(), tokenizer=words(),
    )  # fmt: skip
    return pipe, {**SQUARE, "height": 64, "width": 64, "clean_caption": False, "max_sequence_length": 12}


def lumina2() -> Built:
    transformer = Lumina2Transformer2DModel(
        sample_size=8, in_channels=4, hidden_size=32, num_layers=2, num_refiner_layers=1, num_attention_heads=2,
        num_kv_heads=1, multiple_of=16, axes_dim_rope=(8, 4, 4), axes_lens=(128, 32, 32), cap_feat_dim=WIDTH,
    )  # fmt: skip
    pipe = Lumina2Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=autoencoder(4, 4),
        text_encoder=gemma2(), tokenizer=words(),
    )  # fmt: skip
    return pipe, {**SQUARE, "height": 64, "width": 64, "max_sequence_length": 48}


def lumina2_truncated() -> Built:
    """Guidance in the first half of the steps: two calls in each, then one."""
    pipe, call = lumina2()
    return pipe, {**call, "cfg_trunc_ratio": 0.5}


def auraflow() -> Built:
    transformer = AuraFlowTransformer2DModel(
        sample_size=8, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=WIDTH, out_channels=4,
        pos_embed_max_size=64,
    )  # fmt: skip
    pipe = AuraFlowPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=components.autoencoder(4),
        text_encoder=umt5(), tokenizer=words(),
    )  # fmt: skip
    return pipe, {**SQUARE, "max_sequence_length": 12}


def chroma() -> Built:
    transformer = ChromaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=T5, axes_dims_rope=(4, 6, 6), approximator_hidden_dim=32, approximator_layers=1,
    )  # fmt: skip
    pipe = ChromaPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=components.autoencoder(4),
        text_encoder=components.t5_text_encoder(), tokenizer=words(),
    )  # fmt: skip
    return pipe, {**SQUARE, "max_sequence_length": 12}


def bria() -> Built:
    transformer = BriaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=T5, axes_dims_rope=[4, 6, 6],
    )  # fmt: skip
    pipe = BriaPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=components.autoencoder(4),
        text_encoder=components.t5_text_encoder(), tokenizer=words(),
    )  # fmt: skip
    return pipe, {**SQUARE, "height": 32, "width": 32, "max_sequence_length": 12}


def cogview3() -> Built:
    transformer = CogView3PlusTransformer2DModel(
        in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4, out_channels=4, text_embed_dim=T5,
        time_embed_dim=8, condition_dim=2, pos_embed_max_size=8, sample_size=8,
    )  # fmt: skip
    pipe = CogView3PlusPipeline(
        transformer=transformer, scheduler=CogVideoXDDIMScheduler(), vae=components.autoencoder(4),
        text_encoder=components.t5_text_encoder(), tokenizer=words(),
    )  # fmt: skip
    return pipe, {**SQUARE, "max_sequence_length": 12}


BUILDERS = {
    "flux-schnell": flux_schnell, "sd3": sd3, "sd3-pag": sd3_pag, "pixart-alpha": pixart_alpha,
    "pixart-sigma": pixart_sigma, "pixart-sigma-pag": pixart_sigma_pag, "sana": sana, "sana-pag": sana_pag,
    "sana-sprint": sana_sprint, "hunyuan-dit": hunyuan_dit, "hunyuan-dit-pag": hunyuan_dit_pag, "lumina": lumina,
    "lumina2": lumina2, "lumina2-truncated": lumina2_truncated, "auraflow": auraflow, "chroma": chroma, "bria": bria,
    "cogview3": cogview3,
}  # fmt: skip
