"""LayerSpec: what a quantized linear is made of, and which tensors it therefore stores."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from adatsq_pipe.stages.numerics.packing import packed_bytes

FORMAT = 2
"""Version of what is written to a model folder: LayerSpec, its tensors, the packing of codes."""
WEIGHT_BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """The parts of one quantized linear. An input goes through them in this order: `permuted`, `smoothed`, `block`
    (rotation), rounding; the low-rank branch takes what is about to be rounded."""

    weight_bits: int
    group: int
    """Input channels a weight scale covers; 0 = all of an output channel's."""
    block: int
    """Size of the Hadamard rotation's blocks; 1 = none."""
    symmetric_activations: bool
    activation_group: int = 0
    """Channels of a token that share an activation scale; 0 = all."""
    permuted: bool = False
    """Input channels are put in another order first."""
    smoothed: bool = False
    """Input channels are multiplied by a vector first."""
    rank: int = 0
    """Rank of the branch that runs beside the codes in full precision."""
    codebook: bool = False
    """Codes name the values of a table, not the steps of a uniform grid."""
    activation_codebook: bool = False
    """Tokens are rounded to Lloyd-Max levels of a Gaussian of their own root mean square."""
    time_groups: int = 0
    """Activation scales that were calibrated, one for each group of timesteps; 0 = each token has its own."""
    regions: bool = False
    """With `time_groups`: the calibrated scale is that of positive values; negative ones have a fixed finer step."""

    def __post_init__(self) -> None:
        if self.weight_bits not in WEIGHT_BITS:
            raise ValueError(f"weights of {self.weight_bits} bits cannot be packed; choose of {WEIGHT_BITS}")
        if self.activation_group and self.time_groups:
            raise ValueError("activation_group is for tokens' own scales; with time_groups there is one scale for all")
        if self.regions and not self.time_groups:
            raise ValueError("regions is for calibrated scales; it needs time_groups")
        if self.activation_codebook and (self.activation_group or self.time_groups):
            raise ValueError("activation_codebook rounds a token by its norm; it goes with no group and no time_groups")
        if self.block & (self.block - 1) or self.block < 1:
            raise ValueError(f"a rotation block of {self.block} is no power of two")

    def plain(self) -> dict[str, Any]:
        """What differs from the defaults, for a JSON config."""
        fields = type(self).__dataclass_fields__
        return {name: value for name, value in asdict(self).items() if value != fields[name].default}

    def tensors(
        self, in_features: int, out_features: int, steps: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of every stored tensor, by name. ValueError if the parts do not fit the layer."""
        for what, size in (("group", self.group), ("activation_group", self.activation_group), ("block", self.block)):
            if size and in_features % size:
                raise ValueError(f"{what} {size} does not divide the input width {in_features}")
        if self.rank > min(in_features, out_features):
            raise ValueError(f"rank {self.rank} is above the layer's width {min(in_features, out_features)}")
        groups = in_features // self.group if self.group else 1
        found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "codes": ((out_features, packed_bytes(in_features, self.weight_bits)), torch.uint8),
            "scale": ((out_features, groups), torch.bfloat16),
            "policy": ((steps,), torch.uint8),
        }
        if self.codebook:
            found["book"] = ((2**self.weight_bits,), torch.float32)
        else:
            found["zero"] = ((out_features, groups), torch.uint8)
        if self.permuted:
            found["order"] = ((in_features,), torch.int32)
        if self.smoothed:
            found["smooth"] = ((in_features,), torch.bfloat16)
        if self.rank:
            found["down"] = ((self.rank, in_features), torch.bfloat16)
            found["up"] = ((out_features, self.rank), torch.bfloat16)
        if self.time_groups:
            found["time_group"] = ((steps,), torch.uint8)
            found["step_scale"] = ((self.time_groups,), torch.float32)
            found["step_zero"] = ((self.time_groups,), torch.float32)
        return found
