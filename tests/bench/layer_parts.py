"""What a part of another method does to single layers of `endpoint`: `python -m tests.bench.layer_parts RUN_DIR`.

From the capture and the Gram matrices of a finished run with recipe.method=endpoint: some layers are solved once more
with each part, at the same bits everywhere. Over the sampled inputs of all steps, the squared error of the output that
the rounded weight makes, and the one that rounded tokens make, beside those without the part; and the bits a weight
that the layer stores. A part is worth its bits if it gains more than 20 log10(2) dB a bit, what a further bit of the
weight would gain. Nothing is drawn, and no luck of a whole rounding is in it beyond that of each layer's.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from adatsq_pipe.stages.architecture.layers import quantizable_linears
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.survey import LayerInfo
from adatsq_pipe.stages.calibration.input_transform import best_basis, stored_grid
from adatsq_pipe.stages.calibration.layer_inputs import rounded_inputs
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.calibration.unit_keys import gram_unit
from adatsq_pipe.stages.denoiser.loading import denoiser_of
from adatsq_pipe.stages.methods._layer import incompatibility, spec_of
from adatsq_pipe.stages.methods._recipe import Recipe, resolve
from adatsq_pipe.stages.numerics import float4, gptq, magnitude, symmetric, weight
from adatsq_pipe.stages.numerics.grid import fake_quantize_tokens
from adatsq_pipe.storage import tensors
from tests.bench.rollout import context_of

PARTS: dict[str, dict[str, Any]] = {
    "regular Hadamard": {"transform": "regular"},
    "order by moments": {"permuted": True, "channel_order": "moment"},
    "SmoothQuant": {"smoothing": "smoothquant"},
    "DiTAS, 5 exponents": {"smoothing": "smoothquant", "smoothing_grid": 5, "smoothing_error": "tokens"},
    "MagR": {"magnitude_penalty": 0.00001},
    "DuQuant's rotations": {"transform": "greedy"},
    "HTG's shift, 5 groups": {"shift_groups": 5, "smoothing_layers": "not_gelu"},
    "HTG's shift, 1 group": {"shift_groups": 1, "smoothing_layers": "not_gelu"},
    "TaQ-DiT's shift": {"shift_groups": 1, "shift_momentum": 0.95, "smoothing_layers": "gelu"},
    "TaQ-DiT's shift and migration": {
        "shift_groups": 1, "shift_momentum": 0.95, "smoothing_layers": "gelu", "smoothing": "migration",
    },
    "branch of rank 1": {"rank": 1, "rank_rounds": 10},
    "groups of 64": {"weight_group": 64},
    "NVFP4": {"number_format": "nvfp4", "solver": "rtn", "transform_block": 16},
    "MXFP4": {"number_format": "mxfp4", "solver": "rtn", "transform_block": 32},
}  # fmt: skip
A_BIT = 20 * math.log10(2)


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Squared errors of a layer's output, a row: by the rounded weight, and by rounded tokens. Stored bits a weight."""

    weight: float
    tokens: float
    bits: float


class Layers:
    """The layers of a finished run, solved in one process."""

    def __init__(self, context: Context) -> None:
        self.context, self.survey = context, survey_of(context)
        self.linears = quantizable_linears(denoiser_of(context).transformer)

    @torch.no_grad()
    def errors(self, row: LayerInfo, recipe: Recipe) -> Errors | None:
        """None where the layer cannot take the recipe."""
        if incompatibility(recipe, row):
            return None
        own = self.linears[row.name].weight.detach().float()
        found_in, spec = rounded_inputs(self.context, recipe, row, spec_of(recipe, row), "cpu")
        basis, spec = best_basis(recipe, found_in, spec, own)
        gram = basis.of_gram(self._gram(row) if found_in.shift is None else found_in.gram())
        w = basis.of_weight(own)
        x = torch.cat([basis.of_rows(rows) for _, rows in found_in])
        if spec.number_format:
            meant, values = w, float4.fake_quantize_floats(w, spec.number_format)
            tokens = float4.fake_quantize_floats(x, spec.number_format)
        else:
            factor = gptq.factor(gram, damping=0.01, act_order=True)
            coded = weight.on_grid(
                magnitude.smaller_weight(w, gram, penalty=recipe.magnitude_penalty), gram,
                lambda part: stored_grid(recipe, spec, part), rank=spec.rank, rounds=recipe.rank_rounds,
                solver=lambda part, grid: gptq.solve(part, factor, grid),
            )  # fmt: skip
            meant, values = weight.beside_branch(coded, w), weight.values_of(coded, w.shape[1])
            levels = 2.0**recipe.activation_bits - 1
            tokens = fake_quantize_tokens(x, levels, symmetric=spec.symmetric_activations, group=spec.activation_group)
        off = (values - meant).double()
        stored = spec.tensors(row.in_features, row.out_features, self.survey.steps)
        size = sum(math.prod(shape) * dtype.itemsize for name, (shape, dtype) in stored.items() if name != "level")
        return Errors(
            weight=float((off @ gram * off).sum()),
            tokens=float(((tokens - x) @ meant.T).double().square().sum()) / len(x),
            bits=8 * size / row.size,
        )

    def _gram(self, row: LayerInfo) -> torch.Tensor:
        name = self.context.manifest("hessian").read(gram_unit(row.input_of)).value[row.name]["gram"]
        _, folder = self.context.read("hessian", gram_unit(row.input_of), tensors=[name])
        return symmetric.whole(tensors.mapped(folder, name), row.in_features, torch.float64)


def line(part: str, without: Mapping[str, Errors], found: Mapping[str, Errors | None], sizes: Mapping[str, int]) -> str:
    """A row of the table: gains in dB, the mean over layers with its 95 % interval."""
    pairs = {name: (without[name], each) for name, each in found.items() if each is not None}
    if not pairs:
        return f"| {part} | refused | | | |"
    more = {name: new.bits - old.bits for name, (old, new) in pairs.items()}
    bits = sum(more[name] * sizes[name] for name in more) / sum(sizes[name] for name in more)
    of_weight = {name: 10 * math.log10(old.weight / new.weight) for name, (old, new) in pairs.items()}
    of_tokens = [10 * math.log10(old.tokens / new.tokens) for old, new in pairs.values()]
    fair = [of_weight[name] - A_BIT * more[name] for name in more]
    cells = (f"{bits:+.2f}", _mean(list(of_weight.values())), _mean(fair), _mean(of_tokens))
    return f"| {part} | {' | '.join(cells)} |"


def _mean(values: list[float]) -> str:
    half = 1.96 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):+.2f} ± {half:.2f}"


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--layers", default=9, show_default=True, type=click.IntRange(min=1), help="Layers that are drawn.")
@click.option("--seed", default=0, show_default=True, help="Of the draw.")
@click.option("--bits", default=4, show_default=True, type=click.IntRange(2, 8), help="Of weights and tokens.")
def main(run_dir: Path, layers: int, seed: int, bits: int) -> None:
    """Print the table."""
    solved = Layers(context_of(run_dir))
    rounded = [row for row in solved.survey.layers if row.rounded]
    rows = random.Random(seed).sample(rounded, min(layers, len(rounded)))
    same = {"method": "endpoint", "weight_bits": bits, "activation_bits": bits, "group_fit": True}
    same |= {"weight_budget": 0.0, "allocation": "uniform", "sensitivity": "step"}
    without = {row.name: solved.errors(row, resolve(same)) for row in rows}
    click.echo("| part | bits | weights, dB | at equal bits | tokens, dB |\n|---|---|---|---|---|")
    for name, part in PARTS.items():
        found = {row.name: solved.errors(row, resolve({**same, **part})) for row in rows}
        known = {layer: errors for layer, errors in without.items() if errors is not None}
        click.echo(line(name, known, found, {row.name: row.size for row in rows}))


if __name__ == "__main__":
    main()
