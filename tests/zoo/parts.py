"""Parts of the tiny pipelines: text encoders, autoencoders and words, as small as their classes allow."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
)
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GemmaConfig,
    GemmaModel,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PaddleOCRVLProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
    T5Gemma2Encoder,
    T5Gemma2EncoderConfig,
    UMT5Config,
    UMT5EncoderModel,
)

from adatsq_pipe.stages.scenes.train import components

Built = tuple[Any, dict[str, object]]
WIDTH = 16
T5 = components.TEXT_WIDTH
CHAT = "{% for m in messages %}{{ m['content'] if m['content'] is string else m['content'][0]['text'] }}{% endfor %}"

SQUARE: dict[str, object] = {"height": 16, "width": 16, "num_inference_steps": 2, "guidance_scale": 3.0}
"""What most are called with."""


def words(length: int = 16) -> PreTrainedTokenizerFast:
    found = components.tokenizer()
    found.chat_template, found.model_max_length = CHAT, length
    return found


def reader(template: str = CHAT) -> PaddleOCRVLProcessor:
    """Reads words and pictures, the latter into four tokens at most. Stands for Qwen2.5-VL's own, which wants
    torchvision; its three words for pictures are those that `qwen_vl(seeing=True)` knows."""
    known = PreTrainedTokenizerFast(
        tokenizer_object=words().backend_tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>",
        extra_special_tokens={"image_token": "<|image_pad|>"},
    )  # fmt: skip
    known.add_tokens(["<|vision_start|>", "<|vision_end|>"])
    eyes = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 4 * 28 * 28})
    return PaddleOCRVLProcessor(eyes, known, chat_template=template)


def fill(module: torch.nn.Module, std: float = 0.1) -> None:
    """Put small numbers where a class sets zeros: gates, tables of positions, last projections."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.endswith("bias") and not parameter.any():
                parameter.normal_(std=std)


def _decoder_sizes(layers: int) -> dict[str, Any]:
    found = words()
    return {
        "vocab_size": len(found), "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": layers,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": WIDTH // 2, "max_position_embeddings": 1024,
        "pad_token_id": found.pad_token_id, "eos_token_id": found.eos_token_id,
    }  # fmt: skip


def gemma() -> GemmaModel:
    return GemmaModel(GemmaConfig(**_decoder_sizes(2)))


def gemma2() -> Gemma2Model:
    return Gemma2Model(Gemma2Config(**_decoder_sizes(2)))


_EYE: dict[str, Any] = {
    "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 14, "patch_size": 14,
}  # fmt: skip


def gemma3() -> Gemma3ForConditionalGeneration:
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=_decoder_sizes(2), vision_config=_EYE))


def t5gemma2() -> T5Gemma2Encoder:
    return T5Gemma2Encoder(
        T5Gemma2EncoderConfig(text_config={**_decoder_sizes(2), "dropout_rate": 0.0}, vision_config=_EYE)
    )


def llama(layers: int = 3) -> LlamaModel:
    return LlamaModel(LlamaConfig(**_decoder_sizes(layers)))


def llama_head(layers: int = 2) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**_decoder_sizes(layers)))


def qwen3(layers: int = 2) -> Qwen3Model:
    return Qwen3Model(Qwen3Config(**_decoder_sizes(layers)))


def qwen3_head(layers: int) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(Qwen3Config(**_decoder_sizes(layers)))


def glm() -> GlmModel:
    return GlmModel(GlmConfig(**_decoder_sizes(2)))


def qwen_vl(layers: int = 2, *, seeing: bool = False) -> Qwen2_5_VLForConditionalGeneration:
    text, known = _decoder_sizes(layers), len(words())
    text.pop("head_dim")
    if seeing:
        text["vocab_size"] += 3
    text["rope_scaling"] = {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}
    eye = {"depth": 1, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_heads": 2, "out_hidden_size": WIDTH}
    marks = {"image_token_id": known, "vision_start_token_id": known + 1, "vision_end_token_id": known + 2}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=eye, **(marks if seeing else {}))
    return Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl(layers: int) -> Qwen3VLModel:
    text = {**_decoder_sizes(layers), "rope_scaling": {"mrope_section": [2, 1, 1], "rope_type": "default"}}
    eye = {
        "depth": 1, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_heads": 2, "out_hidden_size": WIDTH,
        "deepstack_visual_indexes": [0],
    }  # fmt: skip
    return Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=eye))


def qwen3_vl_head(layers: int) -> Qwen3VLForConditionalGeneration:
    return Qwen3VLForConditionalGeneration(qwen3_vl(layers).config)


def umt5() -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(words()), d_model=WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=2, dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip


def bert() -> BertModel:
    return BertModel(
        BertConfig(
            vocab_size=len(words()), hidden_size=2 * WIDTH, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=WIDTH, max_position_embeddings=128,
        )
    )  # fmt: skip


def clip_projected() -> CLIPTextModelWithProjection:
    found = words()
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(found), hidden_size=T5 // 2, projection_dim=T5 // 2, intermediate_size=WIDTH,
            num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=77, pad_token_id=found.pad_token_id,
            eos_token_id=found.eos_token_id,
        )
    )  # fmt: skip


def clip() -> CLIPTextModel:
    found = words()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(found), hidden_size=T5, projection_dim=T5, intermediate_size=WIDTH, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=77, pad_token_id=found.pad_token_id,
            eos_token_id=found.eos_token_id,
        )
    )  # fmt: skip


def autoencoder(channels: int, levels: int) -> AutoencoderKL:
    """Halves the resolution `levels - 1` times."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels, latent_channels=channels, norm_num_groups=4, sample_size=16, shift_factor=0.0,
    )  # fmt: skip


def autoencoder_dc() -> AutoencoderDC:
    return AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type="conv",
        upsample_block_type="interpolate",
    )  # fmt: skip


def autoencoder_flux2() -> AutoencoderKLFlux2:
    return AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip


def autoencoder_qwen(channels: int = 4) -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(
        base_dim=8, z_dim=channels, dim_mult=[1, 2, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * channels, latents_std=[1.0] * channels,
    )  # fmt: skip


def autoencoder_wan() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
