"""The card of an assembled folder: what it takes over from the original, and what was counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from adatsq_pipe.stages.base.run_settings import ModelRef
from adatsq_pipe.stages.export.model_card import card, front_matter
from tests.support.made_store import MadeStore, make_store

SIZES: dict[str, Any] = {
    "layers": 494,
    "weight_bits": 4.126,
    "layer_bytes_bf16": 2000,
    "layer_bytes": 520,
    "transformer_bytes_bf16": 2400,
    "transformer_bytes": 960,
}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "---\nlicense: other\nlicense_name: flux-1-dev\ntags: [x]\n---\n# A",
            {"license": "other", "license_name": "flux-1-dev"},
        ),
        ("# no front matter\n---\nlicense: mit\n---\n", {}),
        ("---\nlicense: [\n---\n", {}),
        ("---\njust words\n---\n", {}),
        ("", {}),
    ],
)
def test_licence_and_language_are_inherited(text: str, found: dict[str, str], tmp_path: Path) -> None:
    assert front_matter(tmp_path) == {}
    (tmp_path / "README.md").write_text(text)
    assert front_matter(tmp_path) == found


def test_a_card_that_lies_outside_of_the_folder_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "elsewhere.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "model" / "README.md").symlink_to("../elsewhere.md")
    assert front_matter(tmp_path / "model") == {}
    (tmp_path / "elsewhere.md").unlink()
    assert front_matter(tmp_path / "model") == {}


@pytest.fixture
def store(tmp_path: Path) -> MadeStore:
    """A run whose policy has 4.567 bits on average, 5.125 weighted by MACs, and an original with a card."""
    store = make_store(tmp_path, recipe={"method": "quarot"})
    store.write_survey()
    store.write_layers(bits=3)
    store.manifest("search").open_unit("front")
    store.manifest("search").commit("front", value={"mean_bits": 4.567, "mac_weighted_bits": 5.125})
    model = Path(store.context.model.path)
    model.mkdir()
    (model / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    (model / "README.md").write_text("---\nlicense: other\nlicense_name: flux-dev\nlanguage: en\ntags: [x]\n---\n# A")
    return store


def _parts(text: str) -> tuple[Any, str]:
    """The card's front matter, parsed, and its text."""
    empty, head, body = text.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(head), body


def test_the_card_says_what_was_counted(store: MadeStore) -> None:
    head, body = _parts(card(store.context, SIZES))
    assert head == {
        "base_model": "model",
        "library_name": "diffusers",
        "tags": ["quantized", "adatsq"],
        "license": "other",
        "license_name": "flux-dev",
        "language": "en",
    }
    assert "# model, quantized" in body
    assert "from `model` (FluxPipeline) with the recipe `quarot`. Licence: flux-dev, that of the original." in body
    assert "- weights: 4.13 bits on average with scales and zero points, 494 layers" in body
    assert "- activations: 4.57 bits on average over timesteps and layers, 5.12 weighted by MACs" in body
    assert "- transformer: 2.50 times smaller than in bfloat16 (its quantized layers 3.85 times)" in body
    assert "What it scores" not in body and "{" not in body


def test_a_snapshot_of_the_hubs_cache_is_called_by_its_repository_and_not_by_its_hash(store: MadeStore) -> None:
    model = Path(store.context.model.path)
    snapshot = model.parent / "models--black-forest-labs--FLUX.1-dev" / "snapshots" / "0ef5fff789"
    snapshot.parent.mkdir(parents=True)
    model.rename(snapshot)
    head, body = _parts(card(replace(store.context, model=ModelRef(path=snapshot, digest="")), SIZES))
    assert head["base_model"] == "black-forest-labs/FLUX.1-dev"
    assert "# black-forest-labs/FLUX.1-dev, quantized" in body and "from `black-forest-labs/FLUX.1-dev`" in body
    assert "0ef5fff789" not in body


def test_an_original_without_a_card_passes_on_its_licence_in_words(store: MadeStore) -> None:
    (Path(store.context.model.path) / "README.md").unlink()
    head, body = _parts(card(store.context, SIZES))
    assert "license" not in head
    assert "Its licence is that of the original model." in body
