"""`inspect` of a quantized model: the bits of its layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from adatsq_pipe.pipeline.commands.cli import main
from adatsq_pipe.stages.architecture.layers import quantizable_linears
from tests.stages.runtime.folders import quantize

WIDTHS = (2, 3, 4, 5)
POLICY = [3, 4, 8]
"""What `quantize` gives every layer at three timesteps."""


@pytest.fixture
def folder(family: Callable[[str], Path], tmp_path: Path) -> Path:
    return quantize(family("flux"), tmp_path / "flux", [1.0, 0.7, 0.3], widths=WIDTHS)


def test_every_layer_is_listed_with_its_own_bits(folder: Path, family: Callable[[str], Path]) -> None:
    from diffusers import FluxTransformer2DModel

    linears = quantizable_linears(FluxTransformer2DModel.from_pretrained(family("flux") / "transformer"))
    done = CliRunner().invoke(main, ["inspect", str(folder), "--json"])
    assert done.exit_code == 0, done.output
    rows = {row["name"]: row for row in json.loads(done.output)["layers"]}
    assert rows.keys() == linears.keys()
    for i, (name, linear) in enumerate(linears.items()):
        assert rows[name]["weight_bits"] == WIDTHS[i % 4] and rows[name]["activation_bits"] == POLICY
        assert rows[name]["parameters"] == linear.weight.numel()


def test_the_text_has_means_over_parameters_and_a_line_for_each_kind_of_layer(folder: Path) -> None:
    plain = json.loads(CliRunner().invoke(main, ["inspect", str(folder), "--json"]).output)["layers"]
    done = CliRunner().invoke(main, ["inspect", str(folder)])
    mean = sum(r["weight_bits"] * r["parameters"] for r in plain) / sum(r["parameters"] for r in plain)
    assert done.exit_code == 0 and f"{mean:.2f} bits on average over parameters" in done.output
    assert "5.00 bits on average over steps and layers" in done.output
    own = [r["weight_bits"] for r in plain if r["name"].endswith("attn.to_q") and r["name"].startswith("transformer_")]
    (line,) = [text for text in done.output.splitlines() if text.strip().startswith("transformer_blocks.*.attn.to_q ")]
    assert f" {len(own)} " in line and line.endswith("3 to 8, mean 5.00")
    assert (str(own[0]) if len(set(own)) == 1 else f"{min(own)} to {max(own)}, mean {sum(own) / len(own):.2f}") in line
