"""The trajectory adjoint on real tiny pipelines: finite differences of whole runs, and calls run in parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adatsq_pipe.stages.architecture.layers import quantizable_linears
from adatsq_pipe.stages.denoiser.adjoint import Crossing, obstacle, sweep
from adatsq_pipe.stages.denoiser.block_offload import blocks_of
from adatsq_pipe.stages.denoiser.call import Trajectory
from adatsq_pipe.stages.denoiser.conditions import Conditions
from adatsq_pipe.stages.denoiser.denoiser import Denoiser
from tests import tiny
from tests.zoo import videos

BUILDERS = {**tiny.BUILDERS, "wan2.2": videos.BUILDERS["wan2.2"]}
"""One call a step, list inputs, two calls a step, one doubled call a step, two denoisers."""

LAYERS = {
    "flux": (
        "transformer_blocks.0.norm1.linear", "transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.ff_context.net.2", "single_transformer_blocks.0.proj_out",
    ),
    "z-image": ("noise_refiner.0.attention.to_q", "layers.0.adaLN_modulation.0", "layers.0.feed_forward.w2"),
    "wan": ("blocks.0.attn1.to_q", "blocks.0.attn2.to_k", "blocks.0.ffn.net.2"),
    "dit": ("transformer_blocks.0.norm1.linear", "transformer_blocks.0.attn1.to_v", "transformer_blocks.0.ff.net.2"),
    "wan2.2": (
        "transformer.blocks.0.attn1.to_q", "transformer.blocks.0.ffn.net.2", "transformer_2.blocks.0.attn2.to_k",
        "transformer_2.blocks.0.ffn.net.2",
    ),
}  # fmt: skip
"""The first, the last and one between; of tokens, and of modulation where the blocks have such a layer."""

STEPS = {"dit": 2e-3}
"""Size of a finite difference, relative to the layer's input. DiT's scheduler clips its estimate of the picture, and a
larger step takes more of it over the edge."""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Denoiser]:
    """Opens the tiny pipeline of a name, with three steps."""

    def open_it(name: str, *, blockwise: bool = False) -> Denoiser:
        folder = tmp_path_factory.getbasetemp() / f"adjoint-{name}"
        if not folder.exists():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                pipe, call = BUILDERS[name]()
            pipe.save_pretrained(folder)
            (folder / "sampling.json").write_text(json.dumps({"call": {**call, "num_inference_steps": 3}}))
        call = json.loads((Path(folder) / "sampling.json").read_text())["call"]
        return Denoiser(str(folder), dtype="float32", device="cpu", call=call, blockwise=blockwise)

    return open_it


def _conditions(name: str) -> Conditions:
    prompts = ("1", "2") if name == "dit" else ("a red circle", "two blue squares")
    return Conditions(prompts=prompts, seeds=(5, 6))


def _direction(latents: Tensor) -> Tensor:
    return torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))


def _places(crossings: list[Crossing], calls: int) -> dict[tuple[int, str], list[Crossing]]:
    """Crossings by (place of the call in the run, layer). The sweep comes to the last call first."""
    order = list(dict.fromkeys(id(crossing.call) for crossing in crossings))
    assert len(order) == calls
    found = dict[tuple[int, str], list[Crossing]]()
    for crossing in crossings:
        found.setdefault((calls - 1 - order.index(id(crossing.call)), crossing.layer), []).append(crossing)
    return found


def _swept(denoiser: Denoiser, conditions: Conditions, run: Trajectory, **more: list[nn.Module]) -> list[Crossing]:
    crossings = list[Crossing]()
    linears = quantizable_linears(denoiser.transformer)
    sweep(denoiser, conditions, run, _direction(run.latents), linears, crossings.append, **more)
    return crossings


@contextmanager
def _added(denoiser: Denoiser, layer: nn.Linear, wanted: int, error: Tensor) -> Iterator[Callable[[int, object], None]]:
    """Inside, the layer's output has `error` added at call `wanted`; yields what `record` shows its calls."""
    place = -1

    def see(j: int, call: object) -> None:
        nonlocal place
        place = j

    handle = layer.register_forward_hook(lambda module, args, out: out + error if place == wanted else out)
    try:
        yield see
    finally:
        handle.remove()


@pytest.mark.parametrize("name", BUILDERS)
def test_gradients_are_finite_differences_of_whole_runs(name: str, opened: Callable[..., Denoiser]) -> None:
    """An error at one call changes the outputs of every later call too, as the real denoiser is run throughout."""
    denoiser, conditions = opened(name), _conditions(name)
    run = denoiser.record(conditions)
    r, linears = _direction(run.latents).double(), quantizable_linears(denoiser.transformer)
    places, checked = _places(_swept(denoiser, conditions, run), len(run.outputs)), 0
    for j in range(len(run.outputs)):
        for layer in LAYERS[name]:
            if (j, layer) not in places:
                assert name == "wan2.2", "only a layer of the other denoiser is left out of a call"
                continue
            (crossing,) = places[j, layer]
            g = crossing.output_gradient
            size = torch.rand(g.shape, generator=torch.Generator().manual_seed(j))
            u = size * g.sign()
            wanted, ends = float((g.double() * u.double()).sum()), []
            step = STEPS.get(name, 1e-2) * float(crossing.x.detach().norm()) / float(u.norm())
            for sign in (1, -1):
                with _added(denoiser, linears[layer], j, sign * step * u) as see:
                    ends.append(float((r * denoiser.record(conditions, see=see).latents.double()).sum()))
            assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(wanted, rel=0.01), (j, layer)
            checked += 1
    assert checked >= 9


def _weight_gradients(crossings: list[Crossing]) -> dict[tuple[str, float, str], Tensor]:
    """The gradient of every layer's weight by (denoiser, timestep, layer), summed over calls and their parts."""
    found = dict[tuple[str, float, str], Tensor]()
    for c in crossings:
        key = (c.call.part, c.call.timestep, c.layer)
        product = c.output_gradient.flatten(0, -2).double().T @ c.x.detach().flatten(0, -2).double()
        found[key] = found.get(key, torch.zeros(())) + product
    return found


@pytest.mark.parametrize("name", BUILDERS)
def test_block_offload_and_recomputed_blocks_do_not_change_a_bit(name: str, opened: Callable[..., Denoiser]) -> None:
    denoiser, conditions = opened(name), _conditions(name)
    run = denoiser.record(conditions)
    plain = _swept(denoiser, conditions, run)
    away = opened(name, blockwise=True)
    assert away.offload is not None
    again = _swept(denoiser, conditions, run, recomputed=blocks_of(denoiser.parts))
    offloaded = _swept(away, conditions, run)
    both = _swept(away, conditions, run, recomputed=blocks_of(away.parts))
    assert away.offload.resident == 0
    for other in (again, offloaded, both):
        assert len(other) == len(plain)
        ours, theirs = (_places(each, len(run.outputs)) for each in (plain, other))
        for key, crossings in ours.items():
            for a, b in zip(crossings, theirs[key], strict=True):
                assert torch.equal(a.output_gradient, b.output_gradient) and torch.equal(a.x, b.x), key
                assert torch.equal(a.input_gradient, b.input_gradient) and torch.equal(a.weight, b.weight), key


@pytest.mark.parametrize("name", BUILDERS)
def test_one_sample_at_a_time_has_the_same_gradients(name: str, opened: Callable[..., Denoiser]) -> None:
    denoiser, conditions = opened(name), _conditions(name)
    run = denoiser.record(conditions)
    whole = _weight_gradients(_swept(denoiser, conditions, run))
    denoiser.micro.size = 1
    crossings = _swept(denoiser, conditions, run)
    assert {len(c.samples) for c in crossings} == {1} and {c.samples.start for c in crossings} >= {0, 1}
    parts = _weight_gradients(crossings)
    assert parts.keys() == whole.keys()
    for key, gradient in whole.items():
        torch.testing.assert_close(parts[key], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()) + 1e-12)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_obstacle_is_looked_for_without_a_call(
    name: str, opened: Callable[..., Denoiser], monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser, conditions = opened(name), _conditions(name)
    run = denoiser.record(conditions)
    for part in denoiser.parts.values():
        for block in blocks_of({"": part}):
            monkeypatch.setattr(block, "forward", lambda *args, **kwargs: pytest.fail("a block was called"))
    assert obstacle(denoiser, conditions, run) == ""


def test_out_of_memory_is_no_obstacle(opened: Callable[..., Denoiser], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left to the worker, which sends fewer samples at a time."""
    denoiser, conditions = opened("flux"), _conditions("flux")
    run = denoiser.record(conditions)

    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(type(denoiser.pipe.scheduler), "step", full)
    with pytest.raises(torch.OutOfMemoryError):
        obstacle(denoiser, conditions, run)
