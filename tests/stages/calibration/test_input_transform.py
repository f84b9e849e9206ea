"""The basis of a layer's codes: whatever is done to the input, the product with the weight stays what it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn

from adatsq_pipe.stages.base.micro_batch import MicroBatch
from adatsq_pipe.stages.base.resident import take_peak
from adatsq_pipe.stages.calibration.input_transform import (
    Basis,
    bases,
    best_basis,
    channel_sizes,
    exponents,
    rounded_error,
    stored_grid,
)  # fmt: skip
from adatsq_pipe.stages.calibration.layer_inputs import LayerInputs
from adatsq_pipe.stages.denoiser import loading
from adatsq_pipe.stages.methods._recipe import resolve
from adatsq_pipe.stages.runtime.spec import LayerSpec
from adatsq_pipe.stages.weights.solve_worker import Solve
from adatsq_pipe.storage import tensors
from tests.support import slow_math
from tests.support.made_context import FIRST, SECOND
from tests.support.made_store import make_store

random = torch.Generator().manual_seed(5)
ORDER = torch.randperm(16, generator=random).int()
SMOOTH = torch.rand(16, generator=random).add(0.5).bfloat16()
FOLDED = torch.rand(16, generator=random, dtype=torch.float64).add(0.5)
ROTATIONS = torch.linalg.qr(torch.randn(2, 8, 8, generator=random)).Q
BETWEEN = torch.randperm(16, generator=random).int()
BASES = {
    "nothing": Basis(tensors={}, block=1),
    "order": Basis(tensors={"order": ORDER}, block=1),
    "smooth": Basis(tensors={"smooth": SMOOTH}, block=1),
    "rotation": Basis(tensors={}, block=8),
    "regular rotation": Basis(tensors={}, block=16, regular=True),
    "two rotations": Basis(tensors={"rotations": ROTATIONS, "between": BETWEEN}, block=8),
    "order, smooth, two rotations": Basis(
        tensors={"order": ORDER, "smooth": SMOOTH, "rotations": ROTATIONS, "between": BETWEEN}, block=8
    ),
    "folded": Basis(tensors={}, block=4, folded=FOLDED),
    "all": Basis(tensors={"order": ORDER, "smooth": SMOOTH}, block=16, folded=FOLDED),
}


@pytest.mark.parametrize("name", BASES)
def test_the_product_and_the_gram_matrix_are_those_of_the_turned_input(name: str) -> None:
    basis, draw = BASES[name], torch.Generator().manual_seed(1)
    x = torch.randn(40, 16, generator=draw, dtype=torch.float64)
    w = torch.randn(6, 16, generator=draw)
    rows, weight, gram = basis.of_rows(x), basis.of_weight(w), basis.of_gram(x.T @ x)
    assert torch.allclose(rows @ weight.double().T, x @ w.double().T, atol=1e-5)
    assert torch.allclose(gram, rows.T @ rows, rtol=1e-9, atol=1e-9)
    assert gram.dtype == torch.float64 and weight.dtype == torch.float32


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
@pytest.mark.parametrize(("basis", "most"), [("rotation", 0.75), ("smooth", 0.25), ("order", 1.5)])
def test_a_wide_gram_matrix_is_turned_in_its_own_memory_or_beside_one_copy(basis: str, most: float) -> None:
    """Copies are counted by what the process holds at most, in matrices of float64."""
    width = 4096
    gram = torch.ones(width, width, dtype=torch.float64)
    turns = {"order": {"order": torch.arange(width).flip(0).int()}, "smooth": {"smooth": torch.ones(width).bfloat16()}}
    own = Basis(tensors=turns.get(basis, {}), block=64 if basis == "rotation" else 1)
    own.of_gram(gram[:64, :64].clone()) if basis == "rotation" else None  # loads what multiplies
    take_peak()
    before = take_peak()
    turned = own.of_gram(gram)
    assert take_peak() - before < most * 8 * width**2
    assert turned.shape == (width, width)


def test_rows_are_folded_then_ordered_then_smoothed_then_rotated() -> None:
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    by_hand = torch.stack([(row * FOLDED)[ORDER.long()] * SMOOTH.double() for row in x])
    assert torch.allclose(BASES["all"].of_rows(x), slow_math.rotated(by_hand, 16))


class Rows:
    """Inputs of two steps."""

    def __init__(self, x: torch.Tensor) -> None:
        self.halves = x.chunk(2)

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor]]:
        return iter(enumerate(self.halves))


def test_a_layer_has_one_basis_at_all_weight_bits() -> None:
    """Sensitivities are measured before a layer has its own bits, weights are solved after."""
    recipe = resolve({"method": "permuquant", "weight_group": 8, "activation_group": 8, "weight_bits": 8})
    spec = LayerSpec(weight_bits=8, group=8, block=1, symmetric_activations=False, activation_group=8, permuted=True)
    differ = 0
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        found_in = cast(LayerInputs, Rows(torch.randn(64, 16, generator=draw) * torch.rand(16, generator=draw)))
        w = torch.randn(6, 16, generator=draw)
        few = replace(spec, weight_bits=2)
        (basis, own), (other, theirs) = (best_basis(recipe, found_in, each, w) for each in (spec, few))
        assert own.permuted == theirs.permuted and basis.tensors.keys() == other.tensors.keys()
        assert (own.weight_bits, theirs.weight_bits) == (8, 2)
        offered = bases(recipe, found_in, few, w)[0], Basis(tensors={}, block=1)
        at_two = [rounded_error(found_in, each, w, partial(stored_grid, recipe, few), recipe, few) for each in offered]
        differ += (at_two[0] < at_two[1]) != own.permuted
    assert differ, "at the layer's own bits the choice would be another one"


def test_exponents_are_even_from_nothing_to_all() -> None:
    base = {"method": "smoothquant", "smoothing_alpha": 0.3}
    assert exponents(resolve(base)) == [0.3]
    assert exponents(resolve({**base, "smoothing_grid": 5})) == [0, 0.25, 0.5, 0.75, 1]


def test_channel_sizes_are_peaks_over_all_steps_or_at_the_noisiest() -> None:
    peaks = torch.tensor([[1.0, 5.0], [4.0, 2.0]])
    sized = {
        over: channel_sizes(
            resolve({"method": "smoothquant", "smoothing_over": over}), peaks, torch.ones(1, 2)
        ).tolist()
        for over in ("all", "noisiest")
    }
    assert sized == {"all": [4, 5], "noisiest": [1, 5]}


class Attention(nn.Module):
    """A value projection and what follows it; the attention between them mixes tokens, not channels."""

    def __init__(self) -> None:
        super().__init__()
        self.to_v, self.to_out = nn.Linear(16, 16), nn.ModuleList([nn.Linear(16, 8)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.to_out[0](self.to_v(x).mean(0, keepdim=True))
        return out


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"attn": Attention()})])


class Opened:
    """A denoiser of one attention, as far as solve looks at it."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.transformer, self.micro = Model(), MicroBatch()


def test_a_fold_multiplies_the_producers_rows_and_divides_the_consumers_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 8 bits, up to one code: the consumer stores nothing to smooth, the producer is smoothed itself besides."""
    value, out = "blocks.0.attn.to_v", "blocks.0.attn.to_out.0"
    recipe = {"method": "ptq4dit", "smoothing_over": "all", "weight_bits": 8, "conditioning_group": 0}
    store = make_store(tmp_path, recipe=recipe)
    opened = Opened()
    monkeypatch.setattr(loading, "SLOT", loading.ModelSlot())
    monkeypatch.setattr(loading, "Denoiser", lambda *args, **kwargs: opened)
    shapes = {value: (16, 16), out: (8, 16)}
    row = {"kind": "tokens", "macs": 1}
    rows = [{**row, "name": n, "in": i, "out": o, "source": n} for n, (o, i) in shapes.items()]
    store.write_survey(layers=rows)
    store.rows = dict.fromkeys(shapes, store.rows[FIRST])
    store.peaks = {value: store.peaks[FIRST], out: store.peaks[FIRST].flip(-1)}
    store.names, store.source = list(shapes), {name: name for name in shapes}
    store.grams = {value: store.grams[FIRST], out: store.grams[SECOND]}
    store.write_activations()
    store.write_grams()
    worker = Solve(store.context)
    found = {}
    for name in shapes:
        worker(f"layer/{name}")
        marker, folder = store.context.read("solve", f"layer/{name}")
        found[name] = (marker.value, tensors.read(folder))
    attention = opened.transformer.blocks[0]["attn"]
    v, o = attention.to_v.weight.detach().double(), attention.to_out[0].weight.detach().double()
    peaks = store.peaks[out].amax((0, 1)).double()
    factor = (o.abs().amax(0) / peaks).sqrt()
    held = {n: slow_math.values(stored["codes"], stored["scale"], stored["zero"]) for n, (_, stored) in found.items()}
    smooth = found[value][1]["smooth"].double()
    for name, right in ((value, v * factor[:, None] / smooth), (out, o / factor)):
        assert bool(((held[name] - right).abs() <= 1.1 * found[name][1]["scale"].double()).all())
    bias = found[value][1]["bias"].double()
    assert torch.allclose(bias, attention.to_v.bias.detach().double() * factor, rtol=1e-5)
    assert found[out][0]["smoothing"] == "folded" and not found[out][0]["spec"].get("smoothed", False)
    assert "smooth" not in found[out][1] and "bias" not in found[out][1]
    gram = store.grams[out].double() * factor * factor[:, None]
    assert found[out][0]["error"] == pytest.approx(slow_math.error(o / factor, held[out], gram), rel=1e-3)
    assert found[value][0]["smoothing"] == "on the fly"
