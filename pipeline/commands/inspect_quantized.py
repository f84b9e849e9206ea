"""What `inspect` shows of a quantized model: the bits of its layers' weights, and of their inputs over timesteps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean

from adatsq_pipe.pipeline.commands.layout import aligned, many
from adatsq_pipe.stages.architecture import support
from adatsq_pipe.stages.names import pattern_of
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY
from adatsq_pipe.storage.checkpoint import find_pipeline, read_ending, stored_sizes
from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.model_index import component_config

METHOD = "adatsq"


@dataclass(frozen=True, kw_only=True)
class QuantizedLayer:
    """One linear layer of a quantized denoiser."""

    name: str
    weight_bits: int
    activation_bits: tuple[int, ...]
    """At every timestep of the calibration; 16: not rounded."""
    parameters: int


def quantized_layers(folder: Path) -> list[QuantizedLayer]:
    """The layers of a pipeline folder that this package quantized; none of any other folder."""
    try:
        parts = support.denoisers(find_pipeline(folder))
    except StorageError:
        return []
    found = list[QuantizedLayer]()
    for part in parts:
        config = component_config(folder, part).get("quantization_config")
        if not isinstance(config, dict) or config.get("quant_method") != METHOD:
            continue
        policies, sizes = read_ending(folder, part, ".policy"), stored_sizes(folder)[part]
        prefix = f"{part}: " if len(parts) > 1 else ""
        for name, spec in config["layers"].items():
            bits = int(spec["weight_bits"])
            layer = QuantizedLayer(
                name=prefix + name,
                weight_bits=bits,
                activation_bits=tuple(policies[f"{name}.policy"].tolist()),
                parameters=sizes[f"{name}.codes"] * 8 // bits,
            )
            found.append(layer)
    return found


def layers_as_plain(folder: Path, layers: Sequence[QuantizedLayer]) -> dict[str, object]:
    """As JSON values."""
    return {"model": str(folder), "quantized": METHOD, "layers": [asdict(layer) for layer in layers]}


def layers_as_text(folder: Path, layers: Sequence[QuantizedLayer]) -> str:
    """A line for each name pattern: how many layers, and their least, mean and most bits."""
    groups: dict[str, list[QuantizedLayer]] = {}
    for layer in layers:
        groups.setdefault(pattern_of(layer.name), []).append(layer)
    total = sum(layer.parameters for layer in layers)
    mean = sum(layer.weight_bits * layer.parameters for layer in layers) / total
    rounded = [b for layer in layers for b in layer.activation_bits if b != WEIGHT_ONLY]
    head = [
        ("model", str(folder)),
        ("quantized", f"by {METHOD}: {len(layers)} linears, {many(total)} parameters"),
        ("weights", f"{mean:.2f} bits on average over parameters, without scales and zero points"),
        ("activations", f"{fmean(rounded):.2f} bits on average over steps and layers" if rounded else "not rounded"),
    ]
    rows = [
        (pattern, str(len(ones)), many(sum(one.parameters for one in ones)),
         _bits([one.weight_bits for one in ones]), _bits(list(chain(*(one.activation_bits for one in ones)))))
        for pattern, ones in groups.items()
    ]  # fmt: skip
    return f"{aligned(head)}\n\n{aligned([('layer', 'count', 'parameters', 'weight bits', 'activation bits'), *rows])}"


def _bits(widths: Sequence[int]) -> str:
    """ "4", or "3 to 6, mean 4.25"; 16 bits are not rounded."""
    if set(widths) == {WEIGHT_ONLY}:
        return "not rounded"
    least, most = min(widths), max(widths)
    return str(least) if least == most else f"{least} to {most}, mean {fmean(widths):.2f}"
