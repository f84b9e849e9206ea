"""LayerSpec: the parts of one quantized linear; StoredTensors: the tensors that it therefore stores."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Annotated, get_type_hints

import torch
from torch import Tensor

from adatsq_pipe.stages.numerics.float4 import BLOCKS, Float4
from adatsq_pipe.stages.numerics.packing import packed_bytes
from adatsq_pipe.stages.numerics.transform import hadamard

FORMAT = 2
"""Version of what is written to a model folder: LayerSpec, its tensors, the packing of codes."""
WEIGHT_BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class Stored:
    """Declares a stored tensor: its axes, its dtype, and which part of a LayerSpec asks for it."""

    axes: tuple[str, ...]
    dtype: torch.dtype
    part: str = ""
    """Field of LayerSpec that must be set; empty: always stored."""
    unless: str = ""
    """Field of LayerSpec that must not be set."""


class StoredTensors:
    """The stored tensors of a quantized linear, each declared once: type, shape, dtype and when it is there.

    Axes: `out` and `in` features, `packed` bytes of a row of codes, `groups` of input channels (or 1), `blocks` of
    a float format, `steps` of the policy, two `rotations` of a `block`, `time_groups`, `clip_bins`, `shift_groups`,
    `rank`, and the `values` of a codebook, 2^weight_bits.
    """

    codes: Annotated[Tensor, Stored(("out", "packed"), torch.uint8)]
    """Packed weight codes (`numerics.packing`)."""
    scale: Annotated[Tensor, Stored(("out", "groups"), torch.bfloat16)]
    """Weight = (code - zero) scale, or codebook[code] scale."""
    policy: Annotated[Tensor, Stored(("steps",), torch.uint8)]
    """Activation bits of every step; 16 = not rounded."""
    book: Annotated[Tensor, Stored(("values",), torch.float32, "codebook")]
    """Value of every code."""
    block_scale: Annotated[Tensor, Stored(("out", "blocks"), torch.uint8, "number_format")]
    """What the values of every block of input channels are multiplied by first (`float4.block_scales`)."""
    zero: Annotated[Tensor, Stored(("out", "groups"), torch.uint8, unless="codebook")]
    order: Annotated[Tensor, Stored(("in",), torch.int32, "permuted")]
    """Channel i of the transformed input is channel `order[i]` of the input."""
    rotations: Annotated[Tensor, Stored(("rotations", "block", "block"), torch.float32, "dual")]
    between: Annotated[Tensor, Stored(("in",), torch.int32, "dual")]
    """The two rotations of every block, and the order of channels between them (`transform.rotate_twice`)."""
    smooth: Annotated[Tensor, Stored(("in",), torch.bfloat16, "smoothed")]
    """What the input's channels are multiplied by, in their new order."""
    down: Annotated[Tensor, Stored(("rank", "in"), torch.bfloat16, "rank")]
    up: Annotated[Tensor, Stored(("out", "rank"), torch.bfloat16, "rank")]
    """The low-rank branch adds `up @ down @ x` of the transformed input x."""
    time_group: Annotated[Tensor, Stored(("steps",), torch.uint8, "time_groups")]
    """The group that each step belongs to."""
    step_scale: Annotated[Tensor, Stored(("time_groups",), torch.float32, "time_groups")]
    step_zero: Annotated[Tensor, Stored(("time_groups",), torch.float32, "time_groups")]
    """Calibrated scale and zero point of the activations of each group of steps."""
    clip_bin: Annotated[Tensor, Stored(("steps",), torch.uint8, "clip_bins")]
    """The bin that each step belongs to."""
    step_clip: Annotated[Tensor, Stored(("clip_bins",), torch.float32, "clip_bins")]
    """What the range of every token is multiplied by, in each bin of steps."""
    shift_group: Annotated[Tensor, Stored(("steps",), torch.uint8, "shift_groups")]
    """The group that each step belongs to."""
    shift: Annotated[Tensor, Stored(("shift_groups", "in"), torch.bfloat16, "shift_groups")]
    """What is subtracted from the input's channels, in their own order, in each group of steps."""
    shift_output: Annotated[Tensor, Stored(("shift_groups", "out"), torch.float32, "shift_groups")]
    """What is added to the output for it: the full-precision weight times the shift."""


@cache
def _declarations() -> dict[str, Stored]:
    hints = get_type_hints(StoredTensors, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """The parts of one quantized linear.

    An input passes through them in this order: shift, `permuted`, `smoothed`, `block` (rotation), rounding. The
    low-rank branch takes the input just before rounding. Raises ValueError for parts that exclude each other.
    """

    weight_bits: int
    group: int
    """Input channels that share a weight scale; 0 = all of an output channel's."""
    block: int
    """Size of the Hadamard rotation's blocks, a power of two; 1 = no rotation."""
    symmetric_activations: bool
    activation_group: int = 0
    """Channels of a token that share an activation scale; 0 = all."""
    number_format: Float4 | None = None
    """Weights and tokens are four-bit floats in blocks with scales of their own (`numerics.float4`)."""
    regular: bool = False
    """The rotation's matrix is a regular Hadamard matrix, whose blocks are powers of four, instead of Sylvester's."""
    dual: bool = False
    """The rotation is two stored ones with an order of channels between, instead of a Hadamard matrix."""
    permuted: bool = False
    """Input channels are reordered first."""
    smoothed: bool = False
    """Input channels are then multiplied by a vector."""
    rank: int = 0
    """Rank of the full-precision branch beside the codes; 0 = none."""
    codebook: bool = False
    """Codes index a table of values instead of a uniform grid."""
    activation_codebook: bool = False
    """Tokens are rounded to Lloyd-Max levels of a Gaussian with the token's root mean square."""
    time_groups: int = 0
    """Number of groups of timesteps with a calibrated activation scale each; 0 = each token has its own scale."""
    regions: bool = False
    """With `time_groups`: the calibrated scale is that of positive values; negative ones have a fixed finer step."""

    clip_bins: int = 0
    """Number of bins of timesteps with a clipping ratio each of tokens' own scales; 0 = no clipping."""
    shift_groups: int = 0
    """Number of groups of timesteps with a vector each that is subtracted from the input first; 0 = no shift."""

    def __post_init__(self) -> None:
        if self.clip_bins and (self.time_groups or self.activation_codebook):
            raise ValueError("clip_bins narrows tokens' own ranges; it needs no time_groups, no activation_codebook")
        if self.shift_groups and self.time_groups:
            raise ValueError("time_groups has calibrated scales of the input as it is; it needs no shift_groups")
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
        if self.number_format is not None and self.number_format not in BLOCKS:
            raise ValueError(f"number_format {self.number_format!r} is unknown; it is {' or '.join(BLOCKS)}")
        if self.number_format and (self.weight_bits != 4 or not self.codebook or self.group or self.rank):
            raise ValueError(
                f"{self.number_format} has 4-bit codes of a codebook and its own blocks; no group, no rank"
            )
        if self.number_format and (self.activation_group or self.activation_codebook or self.time_groups):
            raise ValueError(
                f"{self.number_format} rounds tokens in its own blocks; no activation_group, no time_groups"
            )
        if self.dual and (self.regular or self.block == 1):
            raise ValueError("dual has rotations of its own, of blocks of 2 or more; not regular")
        if self.regular and self.block.bit_length() % 2 == 0:
            raise ValueError(f"a regular rotation's block of {self.block} is no power of four")

    def rotation(self, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """The rotation's block, [block, block]."""
        return hadamard(self.block, dtype=dtype, device=device, regular=self.regular)

    def plain(self) -> dict[str, bool | int | str]:
        """The fields that differ from their defaults, for a JSON config: `LayerSpec(**spec.plain()) == spec`."""
        fields = type(self).__dataclass_fields__
        return {name: value for name, value in asdict(self).items() if value != fields[name].default}

    def tensors(
        self, in_features: int, out_features: int, steps: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of every stored tensor, by name. Raises ValueError if the parts do not fit the layer."""
        parts = [("group", self.group), ("activation_group", self.activation_group), ("block", self.block)]
        if self.number_format:
            parts.append((f"{self.number_format}'s block", BLOCKS[self.number_format]))
        for what, size in parts:
            if size and in_features % size:
                raise ValueError(f"{what} {size} does not divide the input width {in_features}")
        if self.rank > min(in_features, out_features):
            raise ValueError(f"rank {self.rank} is above the layer's width {min(in_features, out_features)}")
        sizes = {
            "in": in_features,
            "out": out_features,
            "packed": packed_bytes(in_features, self.weight_bits),
            "groups": in_features // self.group if self.group else 1,
            "values": 2**self.weight_bits,
            "blocks": in_features // BLOCKS[self.number_format] if self.number_format else 0,
            "rotations": 2,
            "block": self.block,
            "rank": self.rank,
            "steps": steps,
            "time_groups": self.time_groups,
            "clip_bins": self.clip_bins,
            "shift_groups": self.shift_groups,
        }
        return {
            name: (tuple(sizes[axis] for axis in stored.axes), stored.dtype)
            for name, stored in _declarations().items()
            if (not stored.part or getattr(self, stored.part)) and not (stored.unless and getattr(self, stored.unless))
        }
