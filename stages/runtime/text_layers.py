"""Layers of a text encoder whose weights are codes of 8 or 4 bits: a linear layer, and a table of tokens.

A layer's `weight` holds packed codes, as int8: transformers' T5 looks at a weight's dtype before it calls a layer, and
leaves the input of an int8 one alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from adatsq_pipe.stages.numerics.packing import packed_bytes, unpack
from adatsq_pipe.stages.numerics.weight_only import rounded_weight

GROUP = 128
"""Most inputs that share a scale."""
SMALLEST_GROUP = 32
OUTSIDE_BITS = 8
"""Bits of what is no layer of a block: the table of tokens, and projections behind the blocks."""
ROWS_AT_ONCE = 2**24
"""Weights that a linear layer unpacks at once."""
PARTS = ("weight", "scale", "zero")
"""The stored tensors of a packed layer: int8 [out, bytes], and [out, groups] in the model's dtype and in uint8."""


@dataclass(frozen=True)
class Packing:
    """How a weight is stored: bits of a code, and inputs to a scale (0: the whole row)."""

    bits: int
    group: int


def group_of(width: int) -> int:
    """Inputs of a row of `width` that share a scale: the largest divisor from 32 to 128; 0, the row, without one."""
    return next((size for size in range(GROUP, SMALLEST_GROUP - 1, -1) if width % size == 0), 0)


def _is_table(module: nn.Module) -> bool:
    """Whether it looks up rows, and multiplies them by a constant at most, as Gemma's tables do."""
    scaled = isinstance(module, nn.Embedding) and hasattr(module, "scalar_embed_scale")
    return type(module) is nn.Embedding or (scaled and len(list(module.parameters())) == 1)


def packings(model: nn.Module, bits: int, left: Collection[str] = ()) -> dict[str, Packing]:
    """What is stored in codes of a transformers model, by the name of the module: linear layers at `bits` inside
    repeated blocks and at 8 bits outside, and the table of tokens at 8 bits by rows. `left` names modules to leave.

    Modules that share a weight have one packing.
    """
    found = dict[str, Packing]()
    table = _table_of(model)
    for name, module in model.named_modules():
        if name in left:
            continue
        if type(module) is nn.Linear:
            inside = any(part.isdigit() for part in name.split("."))
            found[name] = Packing(bits if inside else OUTSIDE_BITS, group_of(module.in_features))
        elif table is not None and module is table and _is_table(module):
            found[name] = Packing(OUTSIDE_BITS, 0)
    modules = dict(model.named_modules())
    for target, source in tied(model).items():
        if target in left or source in left:
            found.pop(target, None)
            found.pop(source, None)
        elif source in found and (type(modules[target]) is nn.Linear or _is_table(modules[target])):
            found[target] = found[source]
        else:
            found.pop(target, None)
            found.pop(source, None)
    return found


def tied(model: nn.Module) -> dict[str, str]:
    """Modules that take their weight from another one, with that one's name."""
    keys: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    pairs = {target: source for target, source in keys.items() if target.endswith(".weight")}
    return {target.removesuffix(".weight"): source.removesuffix(".weight") for target, source in pairs.items()}


def _table_of(model: nn.Module) -> nn.Module | None:
    try:
        table: nn.Module | None = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return table


class Packed(nn.Module):
    """What both kinds of layers are: `rows` weights of `width` numbers, stored as `packing` says."""

    weight: nn.Parameter
    scale: nn.Parameter
    zero: nn.Parameter

    def __init__(self, rows: int, width: int, packing: Packing, dtype: torch.dtype) -> None:
        super().__init__()
        self.packing, self.width = packing, width
        groups = width // packing.group if packing.group else 1
        stored = {
            "weight": torch.zeros(rows, packed_bytes(width, packing.bits), dtype=torch.int8),
            "scale": torch.zeros(rows, groups, dtype=dtype),
            "zero": torch.zeros(rows, groups, dtype=torch.uint8),
        }
        for name, tensor in stored.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def values(self, rows: slice | Tensor) -> Tensor:
        """The weights of these rows, [rows, width], in the dtype of the scales."""
        codes = unpack(self.weight[rows].view(torch.uint8), self.packing.bits, self.width)
        return rounded_weight(codes, self.scale[rows], self.zero[rows])

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]} x {self.width}, {self.packing.bits} bits, group={self.packing.group}"


class PackedLinear(Packed):
    """Replaces an `nn.Linear`. Its input is not rounded; it computes in the dtype of its scales, as that would in the
    dtype of its weight."""

    def __init__(self, linear: nn.Linear, packing: Packing, dtype: torch.dtype) -> None:
        super().__init__(linear.out_features, linear.in_features, packing, dtype)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of a LoRA put on the layer, by the name under which peft looks for it."""
        return self.scale.dtype

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        x, step = x.to(self.scale.dtype), max(1, ROWS_AT_ONCE // self.width)
        out = [
            functional.linear(x, self.values(slice(start, start + step))) for start in range(0, self.out_features, step)
        ]
        y = out[0] if len(out) == 1 else torch.cat(out, -1)
        return y if self.bias is None else y + self.bias

    def plain(self) -> nn.Linear:
        """A plain layer with the weights that the codes stand for."""
        made = nn.Linear(self.in_features, self.out_features, self.bias is not None, dtype=self.scale.dtype)
        made.weight.data = self.values(slice(None))
        if self.bias is not None:
            made.bias.data = self.bias.data
        return made.requires_grad_(False)


class PackedTable(Packed):
    """Replaces an `nn.Embedding`, or one that multiplies its rows by a constant. It unpacks the rows asked for."""

    def __init__(self, table: nn.Embedding, packing: Packing, dtype: torch.dtype) -> None:
        super().__init__(table.num_embeddings, table.embedding_dim, packing, dtype)
        self.num_embeddings, self.embedding_dim = table.num_embeddings, table.embedding_dim
        self.padding_idx = table.padding_idx
        constant = getattr(table, "scalar_embed_scale", None)
        self.scalar_embed_scale: float | None = None if constant is None else float(constant)
        self._kind: Callable[..., nn.Embedding] = type(table)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [..., width] of the ids [...]."""
        rows = self.values(ids.flatten()).view(*ids.shape, self.width)
        if self.scalar_embed_scale is None:
            return rows
        return rows * torch.tensor(self.scalar_embed_scale).to(rows)

    def plain(self) -> nn.Embedding:
        """A plain table with the weights that the codes stand for."""
        made: nn.Embedding
        if self.scalar_embed_scale is None:
            made = nn.Embedding(self.num_embeddings, self.embedding_dim, self.padding_idx)
        else:
            made = self._kind(self.num_embeddings, self.embedding_dim, self.padding_idx, self.scalar_embed_scale)
        made.weight = nn.Parameter(self.values(slice(None)))
        return made.to(self.scale.dtype).requires_grad_(False)


def place(model: nn.Module, found: dict[str, Packing], dtype: torch.dtype) -> dict[str, Packed]:
    """Replace the modules of `found` by packed ones of zeros, on their device; returns these by name."""
    placed = dict[str, Packed]()
    for name, packing in found.items():
        module = model.get_submodule(name)
        assert isinstance(module, nn.Linear | nn.Embedding)
        with module.weight.device:
            made = PackedLinear if isinstance(module, nn.Linear) else PackedTable
            placed[name] = made(module, packing, dtype)  # type: ignore[arg-type]
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, placed[name])
    return placed


def packed_layers(model: nn.Module) -> dict[str, Packed]:
    """The packed layers of a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Packed)}
