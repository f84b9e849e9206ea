"""A model that is loaded from a cast copy has the numbers of the one that is cast while it is loaded, and maps them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from adatsq_pipe.stages.denoiser.castable import kept_in_float32
from adatsq_pipe.storage import cast_copy as module
from tests import tiny
from tests.support.mapping import MAPS, file_of


@pytest.mark.parametrize(
    ("family", "stored", "dtype"), [("flux", "bfloat16", "float32"), ("wan", "float32", "bfloat16")]
)
def test_a_cast_copy_loads_to_the_same_bits(
    family: str, stored: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SMALLEST", 0)
    pipe, _ = getattr(tiny, family)()
    pipe.to(getattr(torch, stored)).save_pretrained(tmp_path / "model")
    kept = kept_in_float32(tmp_path / "model", dtype)
    copy = module.cast_copy(tmp_path / "model", tmp_path / "home", dtype=dtype, kept=kept)
    assert copy is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, shared = (
            DiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, dtype)).components
            for folder in (tmp_path / "model", copy)
        )
    mapped = 0
    for name, component in plain.items():
        if not isinstance(component, nn.Module):
            continue
        wanted, found = component.state_dict(), shared[name].state_dict()
        assert list(wanted) == list(found)
        for key, tensor in wanted.items():
            assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor), key
            mapped += MAPS.exists() and name == "transformer" and str(copy) in file_of(found[key])[1]
    assert mapped or not MAPS.exists(), "the denoiser's weights lie in the copy's files"
