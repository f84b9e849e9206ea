"""Plain bfloat16 weights that the codes stand for: any engine reads them; nothing is smaller, activations are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from adatsq_pipe.stages.architecture.support import denoisers
from adatsq_pipe.stages.export.formats._formats import packed_encoders, transformer_of, write_plain_encoders
from adatsq_pipe.storage.checkpoint import find_pipeline, write_component, write_pipeline

_CARD = """# Dequantized

The weights of a model that adatsq-pipe quantized, as plain bfloat16: they have the quantized weights' values (in the
basis of the original model, rounded to bfloat16) and the original's size. Activations are not rounded.
"""


def export(source: Path, out: Path) -> str:
    first, *others = denoisers(find_pipeline(source))
    weights, encoders = _tensors(source, first), packed_encoders(source)
    write_pipeline(
        source, out, part=first, tensors=weights, quantization_config=None, card=_CARD, others=[*others, *encoders]
    )
    for part in others:
        write_component(source, out, part=part, tensors=_tensors(source, part), quantization_config=None)
    more = write_plain_encoders(source, out, encoders)
    return f"plain bfloat16 weights; activations are not rounded, and nothing is smaller{more}"


def _tensors(source: Path, part: str) -> dict[str, Tensor]:
    model: Any = transformer_of(source, part)
    model.dequantize()
    return dict(model.state_dict())
