"""Text encoders in a plan: what they would take in codes, and the two stages of a run that quantizes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from adatsq_pipe.pipeline.estimate.outlook import Outlook
from adatsq_pipe.pipeline.estimate.work import FORWARD, Work
from adatsq_pipe.stages.architecture.memory import shown
from adatsq_pipe.stages.base.units import shards
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings
from adatsq_pipe.stages.numerics.weight_grid import clip_tries
from adatsq_pipe.stages.runtime.text_layers import GROUP
from adatsq_pipe.stages.text.encoders import SHARD, WHOLE, TextEncoderSettings, shards_of
from adatsq_pipe.stages.text.footprint import BITS, EncoderFootprint, footprints
from adatsq_pipe.stages.text.text_encoder_worker import AT_ONCE
from adatsq_pipe.storage.model_files import weight_files

COPIES = 6
"""Float32 copies of the rows that are rounded at a time."""
ROW = 60
"""Bytes of a picture's row in a small table."""
TABLE = 3_000


@dataclass(frozen=True, kw_only=True)
class TextOutlook:
    """The quantized text encoders of a run."""

    units: int
    stored: int
    """Bytes of their weights in codes."""
    saved: int
    """Bytes by which the assembled folder is smaller."""
    memory: int
    """Bytes of a unit's work besides the process."""
    work: Work
    draws: tuple[int, ...]
    """Pictures of every batch that is drawn with them and the full-precision denoiser."""
    effect: Work

    @property
    def effect_bytes(self) -> int:
        return TABLE * len(self.draws) + ROW * sum(self.draws)


def encoders_in(outlook: Outlook) -> list[EncoderFootprint]:
    """The pipeline's text encoders; none of a transformer alone."""
    return footprints(outlook.subject.path) if outlook.subject.index else []


def text_outlook(outlook: Outlook) -> TextOutlook | None:
    """What quantized text encoders take; None where they stay as they are."""
    bits = outlook.settings[TextEncoderSettings].bits
    found = [one for one in encoders_in(outlook) if bits in one.bytes] if bits != WHOLE else []
    if not found:
        return None
    path, units, before, largest = outlook.subject.path, 0, 0, 0
    for one in found:
        files = weight_files(path, one.name)
        units += len(shards_of(path, one.name)) if files else math.ceil(one.numbers / SHARD)
        before += sum(file.stat().st_size for file in files) if files else outlook.size * one.numbers
        largest = max([largest, *outlook.subject.sizes.get(one.name, {}).values()])
    stored = sum(one.bytes[bits] for one in found)
    tried = clip_tries(GROUP) * sum(width * out * count for one in found for width, out, count in one.shapes)
    held = outlook.settings[EvaluateSettings]
    draws = tuple(outlook.draws[: len(shards(len(held.prompts), held.batch))])
    calls = {part: outlook.calls_of(part) * sum(draws) / one.captions for part, one in outlook.denoising.items()}
    return TextOutlook(
        units=units,
        stored=stored,
        saved=before - stored,
        memory=4 * COPIES * min(AT_ONCE, largest) + outlook.size * largest + min(stored, SHARD),
        work=Work(clipped=float(tried if bits == min(BITS) else 0)),
        draws=draws,
        effect=Work(calls={FORWARD: calls}, passes=len(draws) * outlook.geometry.calls),
    )


def lines(outlook: Outlook, found: TextOutlook | None) -> Sequence[str]:
    """What a plan says of text encoders besides its table."""
    encoders = [one for one in encoders_in(outlook) if len(one.bytes) > 1]
    said = [f"{one.name} stays as it is: {one.left}" for one in encoders_in(outlook) if one.left]
    if not encoders:
        return said
    names, whole = ", ".join(one.name for one in encoders), sum(one.bytes[WHOLE] for one in encoders)
    would = {bits: shown(sum(one.bytes[bits] for one in encoders)) for bits in BITS}
    if found is None:
        said.insert(
            0,
            f"text encoders ({names}) take {shown(whole)} in bfloat16; with text_encoder.bits=8 {would[8]}, with "
            f"text_encoder.bits=4 {would[4]}",
        )
    else:
        bits = outlook.settings[TextEncoderSettings].bits
        said.insert(0, f"text encoders ({names}) take {would[bits]} at {bits} bits, {shown(whole)} in bfloat16")
    return said
