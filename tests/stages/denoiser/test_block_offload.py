"""A model whose blocks take turns on the device gives the bits that it gives whole, in every stage that runs it.

There is no second device here. What lies in main memory is told from what was brought to the "device" by its storage:
inside a denoiser's call no operation may read a tensor of a block that was not brought (`_TwoPlaces`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adatsq_pipe.pipeline.commands import cli
from adatsq_pipe.stages.calibration.fisher_worker import Fisher
from adatsq_pipe.stages.denoiser.block_offload import BlockOffload, SavedTensor, blocks_of, checkpoint_blocks
from adatsq_pipe.stages.denoiser.call import Call
from adatsq_pipe.stages.denoiser.conditions import Conditions
from adatsq_pipe.stages.denoiser.denoiser import Denoiser
from adatsq_pipe.stages.denoiser.outputs import leaves
from tests.conftest import FAMILIES
from tests.whole import harness

_BRINGS = (torch.ops.aten._to_copy.default, torch.ops.aten.clone.default, torch.ops.aten.copy_.default,
           torch.ops.aten.detach.default, torch.ops.aten.empty_like.default)  # fmt: skip


class _TwoPlaces(TorchDispatchMode):
    """Refuses to compute with the tensors of `blocks` that lie in main memory."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        tensors = [t for block in blocks for t in (*block.parameters(), *block.buffers())]
        self.away = {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _BRINGS:
            self.operations += 1
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() in self.away:
                    raise AssertionError(f"{func} reads a tensor {tuple(leaf.shape)} that is not on the device")
        return func(*args, **(kwargs or {}))


def _opened(folder: Path, blockwise: bool) -> Denoiser:
    call = json.loads((folder / "sampling.json").read_text())["call"]
    return Denoiser(str(folder), dtype="float32", device="cpu", call=call, blockwise=blockwise)


def _conditions(name: str) -> Conditions:
    return Conditions(prompts=("207", "3") if name == "dit" else ("a red circle", "a blue square"), seeds=(5, 6))


@contextmanager
def _strictly(denoiser: Denoiser) -> Iterator[_TwoPlaces]:
    """Denoiser calls of `run` under the mode."""
    mode = _TwoPlaces([b for b in blocks_of(denoiser.parts) if "forward" in b.__dict__])
    real = denoiser.run

    def run(call: Call) -> Any:
        with mode:
            return real(call)

    denoiser.run = run  # type: ignore[method-assign]
    try:
        yield mode
    finally:
        del denoiser.run


@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_of_every_family_is_the_same(name: str, family: Callable[[str], Path]) -> None:
    whole, turns = _opened(family(name), False), _opened(family(name), True)
    wanted, got = whole.record(_conditions(name)), turns.record(_conditions(name))
    assert torch.equal(wanted.latents, got.latents)
    assert turns.offload is not None and turns.offload.resident == 0
    blocks = [sum(t.nbytes for t in block.parameters()) for block in blocks_of(turns.parts)]
    assert turns.offload.peak > 0 and turns.offload.peak >= max(blocks)
    call = turns.teleport(_conditions(name), got.outputs[:1])
    assert isinstance(call, Call)
    with torch.no_grad(), _strictly(turns) as mode:
        outputs = leaves(turns.run(call))
    assert mode.away and mode.operations > 50
    assert all(torch.equal(a, b) for a, b in zip(outputs, leaves(wanted.outputs[1]), strict=True))


class _Blocks(nn.Module):
    """Blocks of two linears, to be counted."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return x


def test_one_block_is_there_at_a_time_also_after_an_error() -> None:
    model, turns = _Blocks(), BlockOffload("cpu")
    size = sum(p.nbytes for p in model.blocks[0].parameters())
    mode = _TwoPlaces(list(model.blocks))
    with torch.no_grad(), pytest.raises(AssertionError, match="not on the device"), mode:
        model(torch.randn(2, 8))
    for block in model.blocks:
        turns.add(block)
    held = list(model.parameters())
    with torch.no_grad(), mode:
        model(torch.randn(2, 8))
    assert (turns.resident, turns.peak) == (0, size)
    with pytest.raises(RuntimeError):
        model.blocks[0](torch.randn(2, 7))
    assert turns.resident == 0
    assert all(a is b for a, b in zip(held, model.parameters(), strict=True))


def _gradients(model: nn.Module, x: Tensor) -> tuple[list[Tensor], int]:
    """Gradients of all linears' outputs with their inputs' sums, as the Fisher stage takes them, and forwards run."""
    found, runs = list[Tensor](), [0]

    def see(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept = SavedTensor(args[0])
        runs[0] += 1
        output = output if output.requires_grad else output.detach().requires_grad_(True)
        output.register_hook(lambda g: found.append(torch.cat([g.flatten(), kept().flatten()])))
        return output

    handles = [m.register_forward_hook(see) for m in model.modules() if isinstance(m, nn.Linear)]
    model(x).sum().backward()
    for handle in handles:
        handle.remove()
    return found, runs[0]


def test_a_backward_pass_brings_blocks_again_and_lets_them_go() -> None:
    torch.manual_seed(0)
    model, turns = _Blocks().requires_grad_(False), BlockOffload("cpu")
    x = torch.randn(2, 8)
    wanted, once = _gradients(model, x)
    for block in model.blocks:
        turns.add(block)
    with _TwoPlaces(list(model.blocks)), checkpoint_blocks(model.blocks):
        got, twice = _gradients(model, x)
    assert len(got) == len(wanted) == once == 11 and twice > once
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert (turns.resident, turns.peak) == (0, sum(p.nbytes for p in model.blocks[0].parameters()))
    with checkpoint_blocks(model.blocks):
        pass
    assert all(block.forward.__wrapped__.__self__ is block for block in model.blocks)


def test_what_was_brought_is_freed_when_it_was_used() -> None:
    """Whenever a block is brought, in the backward pass too, no copy of another one is left."""
    model, others = _Blocks().requires_grad_(False), list[int]()
    copies: list[StorageWeakRef] = []

    class Counting(BlockOffload):
        @contextmanager
        def on_device(self, block: nn.Module) -> Iterator[None]:
            others.append(sum(not copy.expired() for copy in copies))
            with super().on_device(block):
                copies.extend(StorageWeakRef(p.untyped_storage()) for p in block.parameters())
                yield

    turns = Counting("cpu")
    for block in model.blocks:
        turns.add(block)
    with checkpoint_blocks(model.blocks):
        _gradients(model, torch.randn(2, 8))
    assert others == [0] * 2 * len(model.blocks)
    others.clear()
    _gradients(model, torch.randn(2, 8))
    assert others[-1] > 0, "without computing again a graph holds every block: then this test would see it"


@pytest.mark.run
def test_fisher_and_search_compute_with_what_was_brought_alone(
    tiny_flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole run in this process; capture, Fisher with its backward pass, and the search under `_TwoPlaces`."""
    seen: dict[str, list[int]] = {"run": [], "scores": []}
    run, scores = Denoiser.run, Fisher._scores

    def strict(denoiser: Denoiser) -> _TwoPlaces:
        mode = _TwoPlaces(blocks_of(denoiser.parts))
        assert mode.away and denoiser.offload is not None
        return mode

    def strict_run(self: Denoiser, call: Call) -> Any:
        with strict(self) as mode:
            output = run(self, call)
        seen["run"].append(mode.operations)
        return output

    def strict_scores(self: Fisher, *args: Any) -> Tensor:
        with strict(self.denoiser) as mode:
            found = scores(self, *args)
        seen["scores"].append(mode.operations)
        return found

    monkeypatch.setattr(Denoiser, "run", strict_run)
    monkeypatch.setattr(Fisher, "_scores", strict_scores)
    arguments = harness.tiny(tmp_path / "run", tiny_flux, "--set", "cluster.gpu_memory=0.0001")
    assert not cli.main(args=[*arguments, "--stages", "capture..search"], standalone_mode=False)
    assert len(seen["scores"]) == 8 and len(seen["run"]) > 8 + 4
    assert min(seen["run"]) > 50 and min(seen["scores"]) > 300
