"""Tiny text-to-image pipelines that read their prompts with a large language model's architecture."""

from __future__ import annotations

from diffusers import (
    AutoencoderKLFlux2,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    Kandinsky5T2IPipeline,
    Kandinsky5Transformer3DModel,
    LongCatImagePipeline,
    LongCatImageTransformer2DModel,
    OmniGenPipeline,
    OmniGenTransformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)

from adatsq_pipe.stages.scenes.train import components
from tests.zoo.parts import (
    SQUARE,
    T5,
    WIDTH,
    Built,
    autoencoder,
    autoencoder_qwen,
    clip,
    clip_projected,
    fill,
    glm,
    llama_head,
    qwen3,
    qwen3_head,
    qwen_vl,
    words,
)


def cogview4() -> Built:
    transformer = CogView4Transformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4, text_embed_dim=WIDTH,
        time_embed_dim=8, condition_dim=4,
    )  # fmt: skip
    pipe = CogView4Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=components.autoencoder(4),
        text_encoder=glm(), tokenizer=words(),
    )  # fmt: skip
    return pipe, {**SQUARE, "max_sequence_length": 16}


def qwen_image() -> Built:
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    pipe = QwenImagePipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=autoencoder_qwen(),
        text_encoder=qwen_vl(), tokenizer=words(),
    )  # fmt: skip
    return pipe, {"height": 32, "width": 32, "num_inference_steps": 2, "max_sequence_length": 64}


def hidream() -> Built:
    transformer = HiDreamImageTransformer2DModel(
        patch_size=16, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_channels=[T5, WIDTH], text_emb_dim=T5, axes_dims_rope=(4, 2, 2),
        max_resolution=(128, 128), llama_layers=[0, 1], force_inference_output=True,
    )  # fmt: skip
    pipe = HiDreamImagePipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=autoencoder(4, 1),
        text_encoder=clip_projected(), tokenizer=words(77), text_encoder_2=clip_projected(), tokenizer_2=words(77),
        text_encoder_3=components.t5_text_encoder(), tokenizer_3=words(), text_encoder_4=llama_head(),
        tokenizer_4=words(),
    )  # fmt: skip
    return pipe, {**SQUARE, "max_sequence_length": 12}


def omnigen() -> Built:
    transformer = OmniGenTransformer2DModel(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=4, intermediate_size=32, num_layers=2,
        in_channels=4, time_step_dim=4, pad_token_id=0, vocab_size=len(words()), pos_embed_max_size=16,
        rope_scaling={"long_factor": [1.0] * 4, "short_factor": [1.0] * 4, "type": "su"},
    )  # fmt: skip
    pipe = OmniGenPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
        vae=components.autoencoder(4), tokenizer=words(),
    )  # fmt: skip
    return pipe, dict(SQUARE)


def flux2_klein() -> Built:
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=3 * WIDTH, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip
    pipe = Flux2KleinPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=qwen3_head(28),
        tokenizer=words(),
    )  # fmt: skip
    return pipe, {**SQUARE, "max_sequence_length": 16}


def ovis() -> Built:
    transformer = OvisImageTransformer2DModel(
        in_channels=16, out_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=WIDTH, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    pipe = OvisImagePipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=components.autoencoder(4),
        text_encoder=qwen3(), tokenizer=words(),
    )  # fmt: skip
    return pipe, {**SQUARE, "max_sequence_length": 16}


def longcat() -> Built:
    transformer = LongCatImageTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=[4, 6, 6],
    )  # fmt: skip
    pipe = LongCatImagePipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=components.autoencoder(16),
        text_encoder=qwen_vl(), tokenizer=words(), text_processor=words(),
    )  # fmt: skip
    return pipe, {**SQUARE, "enable_prompt_rewrite": False}


def kandinsky5() -> Built:
    transformer = Kandinsky5Transformer3DModel(
        in_text_dim=WIDTH, in_text_dim2=T5, time_dim=16, model_dim=32, ff_dim=32,
        num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 6, 6),
    )  # fmt: skip
    fill(transformer)
    pipe = Kandinsky5T2IPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=autoencoder(4, 1),
        text_encoder=qwen_vl(), tokenizer=words(), text_encoder_2=clip(),
        tokenizer_2=words(77),
    )  # fmt: skip
    return pipe, {**SQUARE, "max_sequence_length": 16}


BUILDERS = {
    "cogview4": cogview4, "qwen-image": qwen_image, "hidream": hidream, "omnigen": omnigen, "flux2-klein": flux2_klein,
    "ovis": ovis, "longcat": longcat, "kandinsky5": kandinsky5,
}  # fmt: skip
