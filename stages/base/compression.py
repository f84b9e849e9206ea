"""How a size compares with that in bfloat16, in words: a tiny model with large rotations is larger once quantized."""

from __future__ import annotations


def resized(ratio: float, unit: str = "x") -> str:
    """What `ratio`, the bytes in bfloat16 over the bytes now, means: "3.80x smaller", or "1.61x larger" below 1."""
    return f"{ratio:.2f}{unit} smaller" if ratio >= 1 else f"{1 / ratio:.2f}{unit} larger"


def transformer_line(transformer: float, layers: float) -> str:
    """The ratios of a whole transformer and of its quantized layers, as a model's card says them."""
    whole, part = resized(transformer, " times"), resized(layers, " times")
    word = whole.split()[-1]
    return f"{whole} than in bfloat16 (its quantized layers {part.removesuffix(f' {word}')})"
