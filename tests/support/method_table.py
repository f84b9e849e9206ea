"""The lists of methods in README.md and stages/methods/README.md, from the methods' own files.

`python -m tests.support.method_table` writes them. A method's line is the first of its docstring; its features follow
from its recipe, from what the GPU kernels take and from what the export formats refuse.
"""

from __future__ import annotations

import functools
import importlib
import sys
import textwrap
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import MagicMock, patch

import torch

from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.survey import LayerInfo
from adatsq_pipe.stages.export.formats import auto_round, step_policy
from adatsq_pipe.stages.export.formats._formats import formats
from adatsq_pipe.stages.methods._layer import spec_of
from adatsq_pipe.stages.methods._recipe import Recipe, methods, resolve
from adatsq_pipe.stages.numerics.policy import Policy
from adatsq_pipe.stages.runtime.linear import QuantizedLinear

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- made by: python -m tests.support.method_table -->", "<!-- end of what it makes -->"
STEPS, WIDTH = 6, 1152
"""Of the policies that formats are asked about; inputs of the layer that they and the kernels are asked about."""

DATA_FREE: dict[str, tuple[object, ...]] = {
    "solver": ("rtn",), "smoothing": ("none",), "rank": (0,), "temporal": (False,), "weight_budget": (0.0,),
    "group_search": ((),), "time_groups": (0,), "clip_bins": (0,), "allocation": ("uniform", "first_last"),
    "channel_order": ("random",), "magnitude_penalty": (0.0,), "shift_groups": (0,),
    "transform": ("none", "hadamard", "regular"),
}  # fmt: skip
"""Fields that use captured inputs, with their values that use none."""
WITHOUT_DATA = {
    "method", "number_format", "transform_block", "rotation_steps", "smoothing_error", "permuted", "codebook",
    "smoothing_alpha", "smoothing_grid", "smoothing_over", "smoothing_skip", "smoothing_layers", "smoothing_fold",
    "rank_rounds", "sensitivity",
    "weight_bits", "weight_group", "group_fit", "weight_symmetric", "weight_clip", "conditioning_bits",
    "conditioning_group", "activation_symmetric", "activation_group", "time_search", "regions", "activation_bits",
    "end_steps", "shift_momentum",
}  # fmt: skip
"""Fields that use no captured inputs, or none by themselves."""


@functools.cache
def takes() -> Callable[[QuantizedLinear], bool]:
    """The GPU kernels' own word on which layers they take, without Triton where it is missing."""
    name, triton = "adatsq_pipe.stages.runtime.kernels", MagicMock()
    triton.jit = triton.language.constexpr = lambda anything: anything
    missing = {} if find_spec("triton") else {"triton": triton, "triton.language": triton.language}
    with patch.dict(sys.modules, missing):
        module = importlib.import_module(name)
    if missing:
        sys.modules.pop(name, None)
    found: Callable[[QuantizedLinear], bool] = module.takes
    return found


def data_free(recipe: Recipe) -> bool:
    """Whether nothing of the quantized model rests on captured inputs."""
    return all(getattr(recipe, name) in values for name, values in DATA_FREE.items() if hasattr(recipe, name))


def needs_gradients(recipe: Recipe) -> bool:
    """Whether bits, Hessians or scales rest on what the fisher stage measures."""
    scores = recipe.allocation in ("trellis", "lagrangian") or recipe.temporal or recipe.time_search
    return scores or recipe.weight_budget > 0


def by_step(recipe: Recipe) -> str:
    """What changes with the timestep: bits, scales, shifts, or nothing."""
    bits = recipe.allocation in ("trellis", "lagrangian", "first_last", "bisection")
    scales = recipe.time_groups > 1 or recipe.clip_bins > 1
    changes = (("bits", bits), ("scales", scales), ("shifts", recipe.shift_groups > 1))
    return ", ".join(word for word, there in changes if there)


def _layer(recipe: Recipe) -> QuantizedLinear:
    """A layer of random weights under a recipe."""
    row = {"name": "blocks.0.to_q", "kind": "tokens", "in": WIDTH, "out": WIDTH}
    spec = spec_of(recipe, LayerInfo.from_plain(row))
    layer = QuantizedLinear(WIDTH, WIDTH, spec=spec, steps=STEPS, bias=True, dtype=torch.float32)
    layer.bits = 4
    return layer


def exports(recipe: Recipe) -> list[str]:
    """Formats that take a model of the recipe. The layers' shapes are not asked about."""
    refused = set()
    if recipe.weight_budget or auto_round.refusal(_layer(recipe)):
        refused.add("auto-round")  # a weight budget gives some layers 5 or 6 bits
    try:
        step_policy.projected({f"{layer}": list(bits) for layer, bits in enumerate(_policy(recipe))})
    except StageError:
        refused.add("step-policy")
    return [name for name in formats() if name not in refused]


def _policy(recipe: Recipe) -> tuple[tuple[int, ...], ...]:
    """Bits of two layers at every step, as the recipe's allocation may have them."""
    if recipe.allocation == "first_last":
        return ((16, 4, 4, 4, 4, 16),) * 2
    if recipe.allocation == "bisection":
        return ((3, 4, 8, 4, 4, 3),) * 2
    if recipe.allocation in ("trellis", "lagrangian", "decoupled"):
        return ((3,) * STEPS, (4,) * STEPS)
    return Policy.uniform(2, STEPS, recipe.activation_bits).bits


def line_of(name: str) -> str:
    """The first line of a method's file, ready for a cell of a table."""
    first = (importlib.import_module(f"adatsq_pipe.stages.methods.{name}").__doc__ or "").partition("\n")[0]
    return first.strip().rstrip(".").replace("|", r"\|")


def table() -> str:
    """A row for each method, the default first."""
    rows = ["| method | what it is | data-free | needs gradients | by step | GPU kernels | exports |", "|---" * 7 + "|"]
    for name in ordered():
        recipe = resolve({"method": name})
        taken = exports(recipe)
        cells = [
            f"`{name}`" + (" (default)" if name == Recipe.model_fields["method"].default else ""),
            line_of(name),
            "yes" if data_free(recipe) else "",
            "yes" if needs_gradients(recipe) else "",
            by_step(recipe),
            "yes" if takes()(_layer(recipe)) else "",
            "all" if taken == formats() else ", ".join(taken),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def ordered() -> list[str]:
    """The methods' names, the default first."""
    default = Recipe.model_fields["method"].default
    return [default, *(name for name in methods() if name != default)]


def listed() -> str:
    """The methods' names in a sentence, wrapped."""
    first, *others = (f"`{name}`" for name in ordered())
    return textwrap.fill(f"{first} (default), {', '.join(others)}: one file each.", 120, break_on_hyphens=False)


def replaced(text: str, made: str) -> str:
    """`text` with `made` between the two marks. Raises ValueError if they are not there."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"write {BEGIN} and {END} where the list belongs")
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


FILES = {ROOT / "README.md": listed, ROOT / "stages/methods/README.md": table}

if __name__ == "__main__":
    for file, make in FILES.items():
        file.write_text(replaced(file.read_text(), make()))
