"""Plain bfloat16 weights that the codes stand for: any engine reads them; nothing is smaller, activations are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adatsq_pipe.stages.exports._formats import transformer_of
from adatsq_pipe.storage.checkpoint import write_pipeline

_CARD = """# Dequantized

The weights of a model that adatsq-pipe quantized, as plain bfloat16: they have the quantized weights' values (in the
basis of the original model, rounded to bfloat16) and the original's size. Activations are not rounded.
"""


def export(source: Path, out: Path) -> str:
    model: Any = transformer_of(source)
    model.dequantize()
    write_pipeline(source, out, tensors=model.state_dict(), quantization_config=None, card=_CARD)
    return "plain bfloat16 weights; activations are not rounded, and nothing is smaller"
