"""Trace: what a computation takes, counted while it runs on torch's meta device, where no number is computed.

FLOPs of matrix products (by the dtype that multiplies), bytes that all other operations read and write, and the most
bytes that live at once. Attention counts as one fused kernel, as torch runs it: its scores take no memory.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

KINDS = {torch.float64: "float64", torch.float32: "float32"}
"""Precisions of products; all others are of 16 bits."""
HALF = "half"


@dataclass
class Cost:
    """What a computation takes."""

    flops: dict[str, float] = field(default_factory=dict)
    """Of matrix products and attention, by the precision that multiplies: "half", "float32", "float64"."""
    traffic: float = 0.0
    """Bytes that all operations together read and write in the device's memory."""
    kernels: float = 0.0
    """How many operations that compute."""
    peak: float = 0.0
    """Most bytes of tensors that were made and lived at once."""

    def __add__(self, other: Cost) -> Cost:
        """One after the other."""
        kinds = {*self.flops, *other.flops}
        return Cost(
            flops={kind: self.flops.get(kind, 0.0) + other.flops.get(kind, 0.0) for kind in kinds},
            traffic=self.traffic + other.traffic,
            kernels=self.kernels + other.kernels,
            peak=max(self.peak, other.peak),
        )

    def __mul__(self, times: float) -> Cost:
        """So many times, one after the other."""
        return Cost(
            flops={kind: times * count for kind, count in self.flops.items()},
            traffic=times * self.traffic,
            kernels=times * self.kernels,
            peak=self.peak,
        )

    @property
    def total(self) -> float:
        """FLOPs of all precisions."""
        return sum(self.flops.values())


class _Count(TorchDispatchMode):
    """Counts the operations inside it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cost, self.live = Cost(), 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        for x in given:
            self._take(x, counts=False)
        result = func(*args, **kwargs)
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        new = [x for x in made if self._take(x)]
        if func.is_view or not made:
            return result
        packet = func.overloadpacket
        if packet in flop_registry:
            count = flop_registry[packet](*args, **kwargs, out_val=result)
            self.add(count, given[0].dtype)
        if new or func._schema.is_mutable:
            self.cost.traffic += sum(x.nbytes for x in given) + sum(x.nbytes for x in made)
            self.cost.kernels += 1
        return result

    def add(self, flops: float, dtype: torch.dtype) -> None:
        kind = KINDS.get(dtype, HALF)
        self.cost.flops[kind] = self.cost.flops.get(kind, 0.0) + flops

    def _take(self, tensor: Tensor, *, counts: bool = True) -> bool:
        """Whether the tensor's storage is seen for the first time; if it `counts`, it lives until nothing holds it."""
        if tensor.device.type != "meta":
            return False
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return False
        size = storage.nbytes() if counts else 0

        def gone(_: object) -> None:
            self._known.pop(key, None)
            self.live -= size

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        self.cost.peak = max(self.cost.peak, float(self.live))
        return True


class _Attend(torch.autograd.Function):
    """Fused attention of shapes alone: keeps its inputs and its output, as the real kernel does."""

    @staticmethod
    def forward(ctx: Any, count: _Count, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty((*q.shape[:-1], v.shape[-1]))
        ctx.save_for_backward(q, k, v, out)
        ctx.count = count
        count.add(_attention(q, k, v), q.dtype)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        q, k, v, _ = ctx.saved_tensors
        ctx.count.add(2.5 * _attention(q, k, v), q.dtype)  # the scores once more, and four products for two
        return None, torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> float:
    """FLOPs of softmax(q k^T) v."""
    return 2.0 * math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


class _Fused(TorchFunctionMode):
    """Inside, attention is `_Attend`."""

    def __init__(self, count: _Count) -> None:
        super().__init__()
        self._count = count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return _Attend.apply(self._count, named["query"], named["key"], named["value"])  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


def cost_of(work: Callable[[], object]) -> Cost:
    """What `work` takes."""
    count = _Count()
    with _Fused(count), count:
        work()
    return count.cost


def held_by(work: Callable[[], object]) -> int:
    """Bytes of the tensors that are made by `work` and still live when it has returned, its result among them."""
    count = _Count()
    with _Fused(count), count:
        result = work()
    held = count.live
    del result
    return held
