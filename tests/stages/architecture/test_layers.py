"""Which layers are quantized and which are left, on models of a few modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adatsq_pipe.stages.architecture import layers
from adatsq_pipe.stages.architecture.families._family import Family
from adatsq_pipe.stages.architecture.layers import Several, block_lists, quantizable_linears, several, skipped_modules
from adatsq_pipe.stages.architecture.support import CONVOLUTION, RAW, TABLE, VECTORS
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.runtime.model import replace_linears
from adatsq_pipe.stages.runtime.spec import LayerSpec


class Block(nn.Module):
    """Two linears, and one of everything that is not to be quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.out = nn.Linear(8, 4), nn.Linear(4, 8, bias=False)
        self.norm, self.mix = nn.LayerNorm(8), nn.Conv1d(8, 8, 3)
        self.table = nn.Embedding(5, 8)
        self.experts = nn.ParameterList([nn.Parameter(torch.zeros(2, 17, 18))])
        self.gates = nn.ParameterList([nn.Parameter(torch.zeros(6, 8))])
        self.empty = nn.Linear(1, 4, bias=False)
        self.empty.weight = nn.Parameter(torch.zeros(4, 0))


class Model(nn.Module):
    """A list of blocks, lists that are none (single projections, a plain module), embedders, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.patches = nn.ModuleList([nn.Linear(3, 8), nn.Linear(3, 8)])
        self.time_embed = nn.Linear(8, 8)
        self.other = nn.Linear(8, 8)
        self.proj_out = nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.zeros(8))


NAMES = ["blocks.0.query", "blocks.0.out", "blocks.1.query", "blocks.1.out"]


def test_linears_inside_lists_of_blocks_are_quantized_in_order() -> None:
    model = Model()
    assert list(block_lists(model)) == ["blocks"]
    found = quantizable_linears(model)
    assert list(found) == NAMES
    assert all(found[name] is model.get_submodule(name) for name in NAMES)


def test_everything_else_that_holds_parameters_is_left_with_its_reason() -> None:
    model = Model()
    left = {one.name: (one.kind, one.parameters, one.why) for one in skipped_modules(model)}
    assert left == {
        "(itself)": ("Model", 8, "outside the repeated blocks"),
        **{f"blocks.{i}.norm": ("LayerNorm", 16, VECTORS) for i in (0, 1)},
        **{f"blocks.{i}.mix": ("Conv1d", 8 * 8 * 3 + 8, CONVOLUTION) for i in (0, 1)},
        **{f"blocks.{i}.table": ("Embedding", 40, TABLE) for i in (0, 1)},
        **{f"blocks.{i}.experts": ("ParameterList", 2 * 17 * 18, RAW) for i in (0, 1)},
        **{f"blocks.{i}.gates": ("ParameterList", 48, VECTORS) for i in (0, 1)},
        **{f"patches.{i}": ("Linear", 32, "embedder, outside the repeated blocks") for i in (0, 1)},
        "time_embed": ("Linear", 72, "embedder, outside the repeated blocks"),
        "other": ("Linear", 72, "outside the repeated blocks"),
        "proj_out": ("Linear", 27, "final projection, outside the repeated blocks"),
    }
    taken = sum(p.numel() for layer in quantizable_linears(model).values() for p in layer.parameters())
    assert taken + sum(size for _, size, _ in left.values()) == sum(p.numel() for p in model.parameters())


def test_a_family_names_the_blocks_and_what_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(transformer="Model", why="", blocks=("blocks.1",), leave=("out",))
    monkeypatch.setattr(layers, "family_of", lambda model: family)
    model = Model()
    assert list(quantizable_linears(model)) == ["blocks.1.query"]
    why = {one.name: one.why for one in skipped_modules(model)}
    assert why["blocks.1.out"] == "left by the family"
    assert why["blocks.0.query"] == "outside the repeated blocks"


def test_a_family_whose_blocks_are_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "family_of", lambda model: Family(transformer="Model", why="", blocks=("stages",)))
    with pytest.raises(StageError, match=r"the family of Model names blocks that do not exist: .*stages"):
        quantizable_linears(Model())


def test_several_denoisers_are_named_by_their_parts_and_one_is_itself() -> None:
    one, two = Model(), Model()
    assert several({"transformer": one}) is one
    both = several({"transformer": one, "transformer_2": two})
    assert isinstance(both, Several)
    found = quantizable_linears(both)
    assert list(found) == [f"{part}.{name}" for part in ("transformer", "transformer_2") for name in NAMES]
    assert found["transformer_2.blocks.1.out"] is two.get_submodule("blocks.1.out")


def test_a_block_of_quantized_layers_is_still_a_block() -> None:
    model = Model()
    spec = LayerSpec(weight_bits=4, group=0, block=1, symmetric_activations=False)
    replace_linears(model, dict.fromkeys(NAMES, spec), steps=3)
    assert list(block_lists(model)) == ["blocks"]
    assert quantizable_linears(model) == {}
