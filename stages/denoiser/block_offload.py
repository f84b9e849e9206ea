"""Block offload: a model larger than the device runs with its repeated blocks in main memory, each on the device only
while it computes.

A block's tensors are replaced by copies on the device for one forward and restored after it; autograd keeps the copies
that it saved for as long as it needs them. A backward pass recomputes each block (`checkpoint_blocks`), so that the
device holds one block and its activations at any time. Neither changes a bit of any result.

diffusers' group offload does not serve here: it swaps `.data` in place, which corrupts tensors saved for backward, and
it replaces the denoiser's `forward`, as the stand-in does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from adatsq_pipe.stages.architecture.layers import block_lists, linears_in
from adatsq_pipe.stages.runtime.linear import QuantizedLinear

_LINE = 64
"""Bytes of a cache line."""


def blocks_of(parts: Mapping[str, nn.Module]) -> list[nn.Module]:
    """The repeated blocks of denoisers, in order."""
    return [block for part in parts.values() for stack in block_lists(part).values() for block in stack.children()]


def _stacked(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks of the outermost lists of repeated blocks in a text or picture encoder."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and any(len(linears_in(block)) > 1 for block in child):
            yield from child
        else:
            yield from _stacked(child)


class BlockOffload:
    """Blocks that are on `device` only while they compute. Bytes of their copies: `resident` now, `peak` at most."""

    def __init__(self, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self.resident = self.peak = 0
        self._here: set[nn.Module] = set()

    def add(self, block: nn.Module) -> None:
        """Copy `block` to the device whenever its forward runs, and its submodules when they are called from outside.

        DiT calls its first block's embedder again at the end.
        """
        for module in block.modules():
            if module is block or module._parameters or module._buffers:
                self._bring(module)

    def _bring(self, module: nn.Module) -> None:
        real = module.forward

        @functools.wraps(real)
        def forward(*args: object, **kwargs: object) -> object:
            if module in self._here:
                return real(*args, **kwargs)
            with self.on_device(module):
                return real(*args, **kwargs)

        module.forward = forward

    def present(self, module: nn.Module) -> AbstractContextManager[None]:
        """Inside, the module's tensors are on the device, whether its block is there already or not."""
        return nullcontext() if module in self._here else self.on_device(module)

    @contextmanager
    def on_device(self, block: nn.Module) -> Iterator[None]:
        """Inside, the block's parameters and buffers are copies on the device; the originals come back afterwards."""
        replaced: list[tuple[dict[str, Any], str, Tensor]] = []
        size, modules = 0, set(block.modules())
        try:
            for module in modules:
                for own in (module._parameters, module._buffers):
                    held: dict[str, Any] = own
                    for name, tensor in held.items():
                        if tensor is None:
                            continue
                        copy = _copied(tensor.detach(), self.device)
                        if isinstance(tensor, nn.Parameter):
                            copy = nn.Parameter(copy, requires_grad=tensor.requires_grad)
                        replaced.append((held, name, tensor))
                        held[name] = copy
                        size += copy.nbytes
                        self.resident += copy.nbytes
            self._here |= modules
            self.peak = max(self.peak, self.resident)
            yield
        finally:
            for place, name, tensor in replaced:
                place[name] = tensor
            self._here -= modules
            self.resident -= size
            for module in modules:
                if isinstance(module, QuantizedLinear):
                    module.drop_cache()


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device. In main memory it has the same address modulo 64, because the summation order of a CPU's
    matrix product depends on the alignment."""
    if device.type != "cpu" or not tensor.is_contiguous() or tensor.data_ptr() % tensor.itemsize:
        return tensor.to(device, copy=True)
    room = torch.empty(tensor.nbytes + _LINE, dtype=torch.uint8)
    shift = (tensor.data_ptr() - room.data_ptr()) % _LINE
    return room[shift : shift + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)


def offload_blocks(components: Mapping[str, object], parts: Mapping[str, nn.Module], device: str) -> BlockOffload:
    """Move a pipeline's models to `device`, except for the blocks of its denoisers `parts` and of its encoders.

    Libraries take a model's device from its first parameter, so a block that holds it stays on the device.
    """
    turns = BlockOffload(device)
    for name, component in components.items():
        if not isinstance(component, nn.Module):
            continue
        blocks = blocks_of({name: component}) if name in parts else []
        if isinstance(component, PreTrainedModel):
            blocks = list(_stacked(component))
        first = next(component.parameters(), None)
        away = [block for block in blocks if all(p is not first for p in block.parameters())]
        below = {module for block in away for module in block.modules()}
        for module in component.modules():
            if module not in below:
                _move(module, turns.device)
        for block in away:
            turns.add(block)
    return turns


def _move(module: nn.Module, device: torch.device) -> None:
    """Move a module's own tensors, not those of its children."""
    for parameter in module._parameters.values():
        if parameter is not None:
            parameter.data = parameter.data.to(device)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = buffer.to(device)


@contextmanager
def checkpoint_blocks(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, a backward pass recomputes the activations of one block at a time (gradient checkpointing)."""
    blocks = list(blocks)
    before = [block.__dict__.get("forward") for block in blocks]

    def again(real: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(real)
        def forward(*args: object, **kwargs: Any) -> object:
            if not torch.is_grad_enabled():
                return real(*args, **kwargs)
            return checkpoint(real, *args, use_reentrant=False, **kwargs)

        return forward

    for block in blocks:
        block.forward = again(block.forward)
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


class _Keep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, start: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return start.new_empty(0)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[None, None]:
        return None, None


class SavedTensor:
    """A tensor of a forward pass, saved as autograd saves its own, to be read during the backward pass.

    Where blocks are recomputed, so is this tensor.
    """

    def __init__(self, x: Tensor) -> None:
        with torch.enable_grad():
            self._end: Tensor = _Keep.apply(x.detach(), torch.zeros((), device=x.device, requires_grad=True))  # type: ignore[no-untyped-call]
        """Keeps the autograd node alive; on torch 2.11 its Python object alone does not."""

    def __call__(self) -> Tensor:
        saved: Tensor = self._end.grad_fn.saved_tensors[0]  # type: ignore[union-attr]
        return saved
