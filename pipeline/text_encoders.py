"""Quantized text encoders in numbers: sizes, and what they cost on embeddings and on pictures."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict

from adatsq_pipe.pipeline.config import RunConfig
from adatsq_pipe.pipeline.summary import Embedding, Mean, TextEncoder, TextEncoders
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings
from adatsq_pipe.stages.text import effect
from adatsq_pipe.stages.text.encoders import TextEncoderSettings, encoders_of
from adatsq_pipe.stages.text.packed_folder import packed_encoders
from adatsq_pipe.storage import tables


def text_encoders_of(
    config: RunConfig, context: Context, mean: Callable[[list[list[tables.Row]], str], Mean]
) -> TextEncoders | None:
    """The quantized text encoders of a finished run; None where they stay as they are.

    `mean(rows of each caption, name)` is the mean of a measure over captions.
    """
    settings = config.settings[TextEncoderSettings]
    if not settings.on:
        return None
    rows = effect_rows(context)
    captions = len(config.settings[EvaluateSettings].prompts)
    of_captions = [list(itertools.islice(rows, place, None, captions)) for place in range(captions)]
    return TextEncoders(
        bits=settings.bits,
        encoders=[TextEncoder(**asdict(encoder)) for encoder in packed_encoders(context)],
        not_quantized={e.name: e.left for e in encoders_of(config.model) if e.left},
        embeddings=[Embedding(**asdict(one)) for one in effect.effects_of(context)],
        pictures=len(rows),
        psnr=mean(of_captions, "psnr"),
        latent_error=mean(of_captions, "latent_error"),
    )


def effect_rows(context: Context) -> list[tables.Row]:
    """A row for each picture that was drawn with quantized text encoders and the full-precision denoiser."""
    manifest = context.manifest(effect.STAGE.name)
    return [row for unit in manifest.units() for row in tables.read(manifest.local_folder(unit) / effect.ROWS)]
