"""What the capture kept of one layer's input, by scheduler step: sampled rows, and the peak of every channel.

All of it is mapped into memory, not read: a row is in memory while something computes with it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.calibration.survey import batch_count, step_blocks, survey_of
from adatsq_pipe.stages.calibration.unit_keys import BlockKey
from adatsq_pipe.storage import tensors


def _stored(context: Context, name: str) -> Iterator[tuple[int, list[Tensor]]]:
    """(step, what every batch of captions stored under `name` at it, [calls, ...]) in order of steps and batches."""

    survey = survey_of(context)
    for block, steps in enumerate(step_blocks(context, survey.steps)):
        parts = []
        for shard in range(batch_count(context)):
            _, folder = context.read("capture", BlockKey(block, shard).activations, tensors=[name])
            parts.append(tensors.mapped(folder, name))
        place = 0
        for step in steps:
            calls = survey.calls_at(step)
            yield step, [part[place : place + calls] for part in parts]
            place += calls


def rows(context: Context, source: str) -> Iterator[tuple[int, Tensor]]:
    """(step, sampled rows of all batches, [rows, in]) in order of steps. `source` is the layer that owns the input."""

    for step, parts in enumerate(row_parts(context, source)):
        yield step, torch.cat(parts)


def row_parts(context: Context, source: str) -> list[list[Tensor]]:
    """The sampled rows of every step, those of each batch, [rows, in], by themselves: they lie in the capture's
    files."""
    return [[part.flatten(0, 1) for part in parts] for _, parts in _stored(context, f"rows:{source}")]


def peaks(context: Context, source: str) -> Tensor:
    """The absolute maximum of every input channel at every step, over all tokens and captions, [steps, in]."""

    found = [torch.cat([part.flatten(0, -2) for part in parts]) for _, parts in _stored(context, f"absmax:{source}")]
    return torch.stack([part.amax(0) for part in found])
