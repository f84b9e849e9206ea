"""Tokenizers, text encoders and autoencoders of the built-in pipelines, untrained.

All are stock classes of transformers and diffusers with small configs, so a plain `from_pretrained` loads them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, AutoencoderKLWan
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from adatsq_pipe.stages.scenes.world import captions, motions, rendering

TEXT_LENGTH = 12
TEXT_WIDTH = 64
_SPECIAL = ("<pad>", "<unk>", "<bos>", "</s>")


def tokenizer(vocabulary: Sequence[str] = captions.WORDS) -> PreTrainedTokenizerFast:
    """One token for each word of `vocabulary`, and `</s>` at the end; another word becomes `<unk>`."""
    index = {word: i for i, word in enumerate((*_SPECIAL, *vocabulary))}
    core = Tokenizer(models.WordLevel(index, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", index["</s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        model_max_length=TEXT_LENGTH,
    )


def ids(texts: Sequence[str]) -> Tensor:
    """Token ids int64 `[N, TEXT_LENGTH]` of captions of pictures, padded."""
    return torch.tensor(tokenizer()(list(texts), padding="max_length", max_length=TEXT_LENGTH).input_ids)


def clip_text_encoder() -> CLIPTextModel:
    """A CLIP text model of one layer; its pooled output is the state at `</s>`."""
    words = tokenizer()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            pad_token_id=words.pad_token_id,
            bos_token_id=words.convert_tokens_to_ids("<bos>"),
            eos_token_id=words.eos_token_id,
        )
    )


def _t5_sizes(words: PreTrainedTokenizerFast) -> dict[str, int | float | str | bool]:
    return {
        "vocab_size": len(words),
        "d_model": TEXT_WIDTH,
        "d_kv": 16,
        "d_ff": 2 * TEXT_WIDTH,
        "num_layers": 2,
        "num_heads": 4,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 64,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
        "pad_token_id": words.pad_token_id,
        "eos_token_id": words.eos_token_id,
    }


def t5_text_encoder() -> T5EncoderModel:
    """A T5 encoder of two layers. Its relative positions carry the word order, which Flux itself does not see."""
    words = tokenizer()
    return T5EncoderModel(T5Config(**_t5_sizes(words), decoder_start_token_id=words.pad_token_id))


def qwen_text_encoder() -> Qwen3Model:
    """A causal language model of three layers; pipelines use the states after the second."""
    words = tokenizer()
    return Qwen3Model(
        Qwen3Config(
            vocab_size=len(words),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=16,
            max_position_embeddings=64,
            pad_token_id=words.pad_token_id,
            eos_token_id=words.eos_token_id,
        )
    )


def umt5_text_encoder() -> UMT5EncoderModel:
    """A UMT5 encoder of two layers for the words of the moving world."""
    words = tokenizer(motions.WORDS)
    return UMT5EncoderModel(UMT5Config(**_t5_sizes(words)))


def video_autoencoder(latent_channels: int) -> AutoencoderKLWan:
    """A small Wan autoencoder: half the resolution, and pairs of frames after the first."""
    return AutoencoderKLWan(
        base_dim=16,
        z_dim=latent_channels,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.0] * latent_channels,
        latents_std=[1.0] * latent_channels,
        scale_factor_temporal=2,
        scale_factor_spatial=2,
    )


def autoencoder(latent_channels: int) -> AutoencoderKL:
    """A small KL autoencoder that halves the resolution."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=rendering.SIZE,
        scaling_factor=1.0,
        shift_factor=0.0,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
