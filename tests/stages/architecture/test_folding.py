"""Folding a smoothing into the layer before changes nothing in full precision."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adatsq_pipe.stages.architecture.folding import Fold, apply, folds
from adatsq_pipe.stages.architecture.layers import quantizable_linears
from adatsq_pipe.stages.base.survey import LayerInfo
from adatsq_pipe.stages.denoiser.call import Call
from adatsq_pipe.stages.denoiser.conditions import Conditions
from adatsq_pipe.stages.denoiser.denoiser import Denoiser
from adatsq_pipe.stages.denoiser.hooks import InputRecorder
from adatsq_pipe.stages.denoiser.outputs import leaves

EXPECTED = {"dit": {"transformer_blocks.0.norm1.linear", "transformer_blocks.0.attn1.to_v"}}
EXPECTED["flux"] = {
    "transformer_blocks.0.norm1.linear", "transformer_blocks.0.norm1_context.linear",
    "single_transformer_blocks.0.norm.linear",
}  # fmt: skip


@pytest.mark.parametrize("name", ["dit", "flux"])
def test_the_output_stays_as_it_was(name: str, family: Callable[[str], Path]) -> None:
    folder = family(name)
    call = json.loads((folder / "sampling.json").read_text())["call"]
    denoiser = Denoiser(str(folder), dtype="float32", device="cpu", call=call)
    model = denoiser.transformer.double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    calls: list[Call] = []
    prompt = ("207",) if name == "dit" else ("a red circle",)
    denoiser.transformer.float()
    denoiser.record(Conditions(prompts=prompt, seeds=(1,)), see=lambda j, call: calls.append(call))
    model.double()

    def doubled(value: object) -> object:
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    args = [doubled(value) for value in calls[1].args]
    kwargs = {key: doubled(value) for key, value in calls[1].kwargs.items()}
    layers = quantizable_linears(model)
    listener = InputRecorder(layers)
    with torch.no_grad():
        before = leaves(model.forward(*args, **kwargs))
    listener.close()
    rows = [
        {"name": n, "in": layers[n].in_features, "out": layers[n].out_features, "source": source}
        for n, source in listener.source.items()
    ]
    found = folds(model, [LayerInfo.from_plain(row) for row in rows])
    assert {fold.producer for fold in found if ".0." in fold.producer} == EXPECTED[name]
    untouched = {name: layer.weight.clone() for name, layer in layers.items()}
    for fold in found:
        width = layers[fold.consumers[0]].in_features
        apply(model, fold, torch.rand(width, generator=generator, dtype=torch.float64) + 0.5)
    with torch.no_grad():
        after = leaves(model.forward(*args, **kwargs))
    for one, other in zip(before, after, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)
    changed = {name for name, layer in layers.items() if not torch.equal(layer.weight, untouched[name])}
    assert changed == {name for fold in found for name in (fold.producer, *fold.consumers)}


def test_a_fold_needs_all_layers_fed_the_same_input(family: Callable[[str], Path]) -> None:
    folder = family("dit")
    call = json.loads((folder / "sampling.json").read_text())["call"]
    model = Denoiser(str(folder), dtype="float32", device="cpu", call=call).transformer
    block = "transformer_blocks.0."
    sizes = {n: (x.in_features, x.out_features) for n, x in quantizable_linears(model).items() if n.startswith(block)}
    rows = [{"name": n, "in": i, "out": o, "source": f"{block}attn1.to_q" if "to_" in n and "out" not in n else n}
            for n, (i, o) in sizes.items()]  # fmt: skip
    whole = {fold.consumers for fold in folds(model, [LayerInfo.from_plain(row) for row in rows])}
    assert (f"{block}attn1.to_q", f"{block}attn1.to_k", f"{block}attn1.to_v") in whole
    rows.append({"name": "another", "in": 32, "out": 32, "source": f"{block}attn1.to_q"})
    assert not any(
        f"{block}attn1.to_q" in consumers
        for consumers in {f.consumers for f in folds(model, [LayerInfo.from_plain(row) for row in rows])}
    )


def test_rows_of_a_modulation_are_multiplied_and_the_scales_bias_is_taken_about_one() -> None:
    """(1 + s + b) f = 1 + s f + ((b + 1) f - 1): of the scale's bias one is added before and taken off after."""
    w, bias, factor = torch.arange(1.0, 13).reshape(6, 2), torch.tensor([1.0, 2, 3, 4, 5, 6]), torch.tensor([2.0, 3])
    fold = Fold(producer="norm", consumers=("q",), shift=slice(0, 2), scale=slice(2, 4))
    rows, moved = fold.rows(w, bias, factor)
    assert rows.tolist() == [[2, 4], [9, 12], [10, 12], [21, 24], [9, 10], [11, 12]]
    assert moved is not None
    assert moved.tolist() == [2, 6, 7, 14, 5, 6]
    assert w[0].tolist() == [1, 2] and bias[0] == 1


def test_rows_of_a_value_projection_are_multiplied_alone() -> None:
    fold = Fold(producer="to_v", consumers=("to_out",), shift=slice(0, 2), scale=None)
    rows, moved = fold.rows(torch.ones(2, 3), torch.tensor([1.0, -1]), torch.tensor([2.0, 3]))
    assert rows.tolist() == [[2, 2, 2], [3, 3, 3]]
    assert moved is not None and moved.tolist() == [2, -3]
    assert fold.rows(torch.ones(2, 3), None, torch.tensor([2.0, 3]))[1] is None
