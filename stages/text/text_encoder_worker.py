"""The text encoder stage's worker: rounds the weights of some tensors, and stores them as the loader takes them."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.settings import ComputeSettings
from adatsq_pipe.stages.base.units import unit_of
from adatsq_pipe.stages.denoiser.device import require, settle
from adatsq_pipe.stages.numerics.packing import pack
from adatsq_pipe.stages.numerics.weight_only import round_weight, rounded_weight
from adatsq_pipe.stages.runtime.text_layers import Packing
from adatsq_pipe.stages.text.encoders import TextEncoderSettings, shards_of
from adatsq_pipe.stages.text.packed_folder import FILE
from adatsq_pipe.stages.text.stored_encoder import WEIGHT, stored_encoder
from adatsq_pipe.storage.weights import write_safetensors

AT_ONCE = 2**24
"""Numbers of a weight that are rounded at a time."""


class RoundEncoders:
    """The stage's worker."""

    stage: ClassVar[str] = "text_encoder"

    def __init__(self, context: Context) -> None:
        self.context, compute = context, context.settings[ComputeSettings]
        self.device = compute.device
        require(self.device)
        settle(device=self.device, threads=compute.threads)

    def __call__(self, key: str) -> None:
        _, name, place = key.split("/")
        folder = self.context.model.path
        with unit_of(self.context, self.stage, key) as unit, torch.no_grad():
            encoder = stored_encoder(folder, name, self.context.settings[TextEncoderSettings].bits)
            stored, numbers, in_codes, code_bytes = dict[str, Tensor](), 0, 0, 0
            squares = torch.zeros(2, dtype=torch.float64)
            for tensor in shards_of(folder, name)[int(place)]:
                if tensor in encoder.dropped:
                    continue
                value = encoder.tensors[tensor].load()
                numbers += value.numel()
                if tensor not in encoder.packed:
                    stored[tensor] = value
                    continue
                with unit.timed("algebra"):
                    parts, error = rounded(tensor, value, encoder.packed[tensor], self.device)
                stored |= parts
                squares += error
                in_codes += value.numel()
                code_bytes += sum(part.nbytes for part in parts.values())
            write_safetensors(unit.folder / FILE, stored)
            unit.value = {
                "tensors": {n: t.nbytes for n, t in sorted(stored.items())},
                "left": list(encoder.left),
                "numbers": numbers,
                "numbers_in_codes": in_codes,
                "bytes_in_codes": code_bytes,
                "squared_error": float(squares[0]),
                "squared_weights": float(squares[1]),
            }


def rounded(name: str, weight: Tensor, packing: Packing, device: str = "cpu") -> tuple[dict[str, Tensor], Tensor]:
    """The stored tensors of a weight [out, in], and its (squared error, squared size), float64 [2].

    Some rows at a time are in memory in float32. Raises StageError for a weight with numbers that are not finite.
    """
    found: dict[str, list[Tensor]] = {"codes": [], "scale": [], "zero": []}
    squares = torch.zeros(2, dtype=torch.float64)
    for rows in weight.split(max(1, AT_ONCE // weight.shape[1])):
        exact = rows.to(device).float()
        try:
            parts = round_weight(exact, bits=packing.bits, group=packing.group)
        except ValueError as error:
            raise StageError(f"the text encoder's {name} cannot be quantized: {error}") from None
        values = rounded_weight(parts["codes"], parts["scale"].float(), parts["zero"])
        squares[0] += (values - exact).square().sum(dtype=torch.float64).cpu()
        squares[1] += exact.square().sum(dtype=torch.float64).cpu()
        parts["codes"] = pack(parts["codes"], packing.bits).view(torch.int8)
        for part, tensor in parts.items():
            found[part].append(tensor.cpu())
    stored = {part: torch.cat(tensors) for part, tensors in found.items()}
    module = name.removesuffix(WEIGHT)
    return {name: stored["codes"], f"{module}.scale": stored["scale"], f"{module}.zero": stored["zero"]}, squares
