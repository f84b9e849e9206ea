"""Layers of a made store, solved; and what they must hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adatsq_pipe.stages.weights.solve_worker import Solve
from adatsq_pipe.storage import tensors
from adatsq_pipe.storage.marker import Marker
from tests.support import slow_math
from tests.support.made_context import FIRST
from tests.support.made_store import MadeStore, make_store
from tests.support.two_layer_denoiser import TwoLayerDenoiser


def solved(
    folder: Path,
    patch: pytest.MonkeyPatch,
    recipe: Mapping[str, Any],
    names: tuple[str, ...] = (FIRST,),
    change: Callable[[MadeStore], None] = lambda store: None,
    **more: Any,
) -> tuple[MadeStore, Solve]:
    """A store, changed before it is written, whose layers `names` are solved under `recipe` for the store's weights."""
    store = make_store(folder, recipe={"conditioning_group": 0, **recipe}, **more)
    change(store)
    denoiser = TwoLayerDenoiser().install(patch)
    for name, weight in store.weights.items():
        denoiser.transformer.get_submodule(name).weight.data.copy_(weight)
    store.write_survey()
    store.write_activations()
    store.write_grams()
    store.write_scores(curvature=True)
    worker = Solve(store.context)
    for name in names:
        worker(f"layer/{name}")
    return store, worker


def layer_unit(store: MadeStore, name: str = FIRST) -> tuple[Marker, dict[str, Tensor]]:
    """The marker and the tensors of a layer's unit."""
    marker, folder = store.context.read("solve", f"layer/{name}")
    return marker, tensors.read(folder)


def assert_nearest(stored: Mapping[str, Tensor], w: Tensor, bits: int, **of_grid: Any) -> Tensor:
    """Assert that the unit holds `w` rounded to nearest; return its values."""
    scale, zero = slow_math.grid(w, bits, **of_grid)
    repeat = w.shape[1] // scale.shape[1]
    codes = slow_math.codes_of(w.float(), scale.repeat_interleave(repeat, 1), zero.repeat_interleave(repeat, 1), bits)
    assert torch.equal(stored["scale"].float(), scale)
    assert torch.equal(stored["zero"].float(), zero)
    assert torch.equal(stored["codes"].float(), codes)
    return slow_math.values(codes, scale, zero)


def smooth_of(peaks: Tensor, w: Tensor, alpha: float) -> Tensor:
    """What the layer multiplies its input by: max|W|^(1 - alpha) / max|X|^alpha (SmoothQuant, eq. 4)."""
    sizes = [float(w[:, j].abs().max()) ** (1 - alpha) / float(peaks[j]) ** alpha for j in range(w.shape[1])]
    return torch.tensor(sizes, dtype=torch.float64).bfloat16().double()
