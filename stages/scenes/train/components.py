"""The parts of the small pipelines that are the same in every family: tokenizers, text encoders, the autoencoder.

All are the stock classes of transformers and diffusers with small configs, so plain `from_pretrained` loads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def tokenizer(known: Sequence[str] = captions.WORDS) -> PreTrainedTokenizerFast:
    """One token for each of the words `known`, closed by `</s>`; a word outside them becomes `<unk>`."""
    vocabulary = {word: i for i, word in enumerate((*_SPECIAL, *known))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        model_max_length=TEXT_LENGTH,
    )


def ids(sayings: Sequence[str]) -> Tensor:
    """Token ids `[N, TEXT_LENGTH]` of captions of pictures."""
    return torch.tensor(tokenizer()(list(sayings), padding="max_length", max_length=TEXT_LENGTH).input_ids)


def clip_text_encoder() -> CLIPTextModel:
    """A one-layer CLIP text model; its pooled output is the state at `</s>`."""
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


def _t5_sizes(words: PreTrainedTokenizerFast) -> dict[str, Any]:
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
    """A two-layer T5 encoder; relative positions carry the word order, which Flux itself does not see."""
    words = tokenizer()
    return T5EncoderModel(T5Config(**_t5_sizes(words), decoder_start_token_id=words.pad_token_id))


def qwen_text_encoder() -> Qwen3Model:
    """A causal language model of three layers; pipelines take the state after the second."""
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
    """A two-layer UMT5 encoder over the words of the moving world."""
    words = tokenizer(motions.WORDS)
    return UMT5EncoderModel(UMT5Config(**_t5_sizes(words)))


def video_autoencoder(latent_channels: int) -> AutoencoderKLWan:
    """A small Wan autoencoder: half the resolution, and every frame but the first two by two."""
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
