"""Tiny pipelines of the latest models that draw pictures, and of the Cosmos worlds."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCosmos,
    AutoencoderKLQwenImage21,
    Cosmos2_5_PredictBasePipeline,
    Cosmos2TextToImagePipeline,
    Cosmos3OmniPipeline,
    Cosmos3OmniTransformer,
    CosmosTextToWorldPipeline,
    CosmosTransformer3DModel,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    GlmImagePipeline,
    GlmImageTransformer2DModel,
    Ideogram4Pipeline,
    Ideogram4Transformer2DModel,
    JoyImageEditPlusPipeline,
    JoyImageEditPlusTransformer3DModel,
    PRXPixelPipeline,
    PRXTransformer2DModel,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
    UniPCMultistepScheduler,
    ZImageOmniPipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPImageProcessorPil,
    GlmImageConfig,
    GlmImageForConditionalGeneration,
    GlmImageImageProcessorPil,
    GlmImageProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Siglip2ImageProcessorPil,
    Siglip2VisionConfig,
    Siglip2VisionModel,
)

from adatsq_pipe.stages.scenes.train import components
from tests.tiny import flux
from tests.zoo.parts import (
    CHAT,
    SQUARE,
    T5,
    WIDTH,
    Built,
    autoencoder,
    autoencoder_flux2,
    autoencoder_wan,
    fill,
    qwen3,
    qwen3_vl,
    qwen3_vl_head,
    qwen_vl,
    words,
)


class Lenient:
    """Stands for the checker of the package cosmos_guardrail, without which these pipelines are not made."""

    def to(self, device: object) -> None:
        pass

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


def _cosmos_transformer(channels: int, text: int, **more: Any) -> CosmosTransformer3DModel:
    found = CosmosTransformer3DModel(
        in_channels=channels, out_channels=16, num_attention_heads=2, attention_head_dim=16, num_layers=2, mlp_ratio=2,
        text_embed_dim=text, adaln_lora_dim=4, max_size=(4, 32, 32), concat_padding_mask=False, **more,
    )  # fmt: skip
    fill(found)
    return found


def _unguarded(kind: Any) -> Any:
    """The class, which makes a checker wherever it is given none: a lenient one, from now on in this process."""
    importlib.import_module(kind.__module__).__dict__["CosmosSafetyChecker"] = Lenient
    return kind


def cosmos() -> Built:
    vae = AutoencoderKLCosmos(
        latent_channels=16, encoder_block_out_channels=(8,) * 4, decode_block_out_channels=(8,) * 4, num_layers=1,
        attention_resolutions=(8,), resolution=64, patch_size=4, spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )  # fmt: skip
    pipe = _unguarded(CosmosTextToWorldPipeline)(
        text_encoder=components.t5_text_encoder(), tokenizer=words(), transformer=_cosmos_transformer(16, T5), vae=vae,
        scheduler=EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, prediction_type="epsilon"),
    )  # fmt: skip
    return pipe, {**SQUARE, "num_frames": 5, "max_sequence_length": 12}


def cosmos2() -> Built:
    transformer = _cosmos_transformer(16, T5)
    with torch.no_grad():  # so that it shows in pictures of a byte for each colour
        transformer.proj_out.weight.normal_()
    pipe = _unguarded(Cosmos2TextToImagePipeline)(
        text_encoder=components.t5_text_encoder(), tokenizer=words(), transformer=transformer, vae=autoencoder_wan(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
    )  # fmt: skip
    return pipe, {**SQUARE, "max_sequence_length": 12}


def cosmos25() -> Built:
    transformer = _cosmos_transformer(
        17, 32, extra_pos_embed_type=None, use_crossattn_projection=True, crossattn_proj_in_channels=2 * WIDTH,
        encoder_hidden_states_channels=32,
    )  # fmt: skip
    pipe = _unguarded(Cosmos2_5_PredictBasePipeline)(
        text_encoder=qwen_vl(), tokenizer=words(), transformer=transformer, vae=autoencoder_wan(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    )  # fmt: skip
    return pipe, {**SQUARE, "num_frames": 5, "negative_prompt": "a circle", "max_sequence_length": 16}


def cosmos3() -> Built:
    """Reads the words itself, in the same blocks."""
    transformer = Cosmos3OmniTransformer(
        head_dim=16, hidden_size=32, intermediate_size=32, latent_channel=16, num_attention_heads=2,
        num_hidden_layers=2, num_key_value_heads=1, patch_latent_dim=64, vocab_size=len(words()),
        rope_axes_dim=(4, 2, 2),
    )  # fmt: skip
    pipe = Cosmos3OmniPipeline(
        transformer=transformer, text_tokenizer=words(), vae=autoencoder_wan(), enable_safety_checker=False,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    )  # fmt: skip
    return pipe, {**SQUARE, "num_frames": 5}


def ideogram4() -> Built:
    """Two denoisers in every step: one is told the prompt, one is not."""
    sizes: dict[str, Any] = {
        "in_channels": 16, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
        "intermediate_size": 32, "adaln_dim": 8, "llm_features_dim": 13 * WIDTH, "mrope_section": (4, 2, 2),
    }  # fmt: skip
    pipe = Ideogram4Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=autoencoder_flux2(), text_encoder=qwen3_vl(36),
        tokenizer=words(), transformer=Ideogram4Transformer2DModel(**sizes),
        unconditional_transformer=Ideogram4Transformer2DModel(**sizes),
    )  # fmt: skip
    return pipe, {**SQUARE, "max_sequence_length": 16, "guidance_schedule": None}


def bria_fibo2() -> Built:
    from diffusers import BriaFibo2Pipeline, BriaFibo2Transformer2DModel  # since 0.42

    transformer = BriaFibo2Transformer2DModel(
        in_channels=4, dim=32, n_layers=5, n_refiner_layers=1, n_heads=2, cap_feat_dim=3 * WIDTH,
        injection_layer_ids=(0, 1, 2, 3, 4), perceiver_num_layers=1, min_num_gist_tokens=4, max_num_gist_tokens=8,
        gist_step=4, gist_min_text_len=8, gist_max_text_len=32, axes_dims=(4, 6, 6), axes_lens=(64, 16, 16),
    )  # fmt: skip
    fill(transformer)
    pipe = BriaFibo2Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=autoencoder_flux2(),
        text_encoder=qwen3_vl_head(36), processor=words(),
    )  # fmt: skip
    return pipe, dict(SQUARE)


def prx_pixel() -> Built:
    """Denoises the picture itself."""
    transformer = PRXTransformer2DModel(
        in_channels=3, context_in_dim=WIDTH, hidden_size=32, num_heads=2, depth=2, axes_dim=[8, 8], bottleneck_size=8,
        resolution_embeds=True,
    )  # fmt: skip
    fill(transformer)
    pipe = PRXPixelPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), text_encoder=qwen3(), tokenizer=words(),
        default_sample_size=16, prompt_max_tokens=12,
    )  # fmt: skip
    return pipe, {**SQUARE, "use_resolution_binning": False}


def z_image_omni() -> Built:
    """Takes pictures too, if it is given any."""
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2,
        n_kv_heads=2, qk_norm=True, cap_feat_dim=WIDTH, siglip_feat_dim=WIDTH, rope_theta=256.0, t_scale=1000.0,
        axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    with torch.no_grad():  # the class leaves its tokens as memory was
        for token in (transformer.x_pad_token, transformer.cap_pad_token, transformer.siglip_pad_token):
            token.normal_(std=0.1)
    eye = Siglip2VisionModel(
        Siglip2VisionConfig(
            hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, num_patches=16,
            patch_size=4,
        )
    )  # fmt: skip
    pipe = ZImageOmniPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=components.autoencoder(16), text_encoder=qwen3(),
        tokenizer=words(), transformer=transformer, siglip=eye, siglip_processor=Siglip2ImageProcessorPil(),
    )  # fmt: skip
    return pipe, {**SQUARE, "max_sequence_length": 16}


def joyimage_edit_plus() -> Built:
    """Changes pictures, and draws where it is given none."""
    transformer = JoyImageEditPlusTransformer3DModel(
        hidden_size=32, num_attention_heads=2, text_dim=WIDTH, mlp_width_ratio=2.0, num_layers=2,
        rope_dim_list=[4, 6, 6],
    )  # fmt: skip
    fill(transformer, std=1.0)
    pipe = JoyImageEditPlusPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=autoencoder_wan(), text_encoder=qwen3_vl_head(2),
        tokenizer=words(), transformer=transformer, processor=words(),
    )  # fmt: skip
    return pipe, dict(SQUARE)


def flux_kontext() -> Built:
    """Likewise."""
    pipe, call = flux()
    return FluxKontextPipeline(**pipe.components), {**call, "max_area": 256}


def qwen_image21() -> Built:
    """Told to keep nothing of one step for the next."""
    transformer = QwenImage21Transformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2, context_in_dim=WIDTH,
        mlp_ratio=2, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage21(
        base_dim=8, decoder_base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )  # fmt: skip
    reader = words()
    reader.add_tokens(["<|image_pad|>"])
    pipe = QwenImage21Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=qwen3_vl_head(3), transformer=transformer,
        processor=LlavaProcessor(CLIPImageProcessorPil(), reader, chat_template=CHAT, image_token="<|image_pad|>"),
    )  # fmt: skip
    return pipe, {"height": 64, "width": 64, "num_inference_steps": 2, "use_kv_cache": False}


def glm_image() -> Built:
    """A language model writes tokens of the picture first. The denoiser is handed a cache, which text leaves empty."""
    transformer = GlmImageTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4, text_embed_dim=T5,
        time_embed_dim=8, condition_dim=4, prior_vq_quantizer_codebook_size=32,
    )  # fmt: skip
    reader = PreTrainedTokenizerFast(
        tokenizer_object=words().backend_tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>",
        bos_token="<bos>",
        extra_special_tokens={"image_token": "<image>", "grid_bos_token": "<sop>", "grid_eos_token": "<eop>"},
    )  # fmt: skip
    writer = GlmImageForConditionalGeneration(
        GlmImageConfig(
            text_config={
                "vocab_size": 64, "vision_vocab_size": 32, "hidden_size": WIDTH, "intermediate_size": WIDTH,
                "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0,
                "eos_token_id": 63, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                                        "mrope_section": [1, 1, 2]},
            },
            vision_config={"depth": 1, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_heads": 2},
            vq_config={"embed_dim": 8, "num_embeddings": 32, "latent_channels": 8},
            image_token_id=60, image_start_token_id=61, image_end_token_id=62,
        )
    )  # fmt: skip
    vae = autoencoder(4, 4)
    vae.register_to_config(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    pipe = GlmImagePipeline(
        tokenizer=words(), text_encoder=components.t5_text_encoder(), vision_language_encoder=writer,
        processor=GlmImageProcessor(GlmImageImageProcessorPil(), reader, chat_template=CHAT), transformer=transformer,
        vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    return pipe, {**SQUARE, "height": 32, "width": 32, "max_sequence_length": 12}


BUILDERS = {
    "cosmos": cosmos, "cosmos2": cosmos2, "cosmos2.5": cosmos25, "cosmos3": cosmos3, "ideogram4": ideogram4,
    "bria-fibo2": bria_fibo2, "prx-pixel": prx_pixel, "z-image-omni": z_image_omni,
    "joyimage-edit-plus": joyimage_edit_plus, "flux-kontext": flux_kontext,
    "qwen-image2.1": qwen_image21, "glm-image": glm_image,
}  # fmt: skip
