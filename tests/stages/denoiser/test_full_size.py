"""Full-size models without their weights: the written-down configs, walked on the meta device as `inspect` does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adatsq_pipe.pipeline.commands.footprint import footprint
from adatsq_pipe.stages.denoiser import inspection
from adatsq_pipe.stages.methods._recipe import resolve

CONFIGS = Path(__file__).parents[2] / "zoo" / "configs"

PUBLISHED = {
    "flux1-dev": (11.9, 494), "flux1-schnell": (11.9, 494), "z-image": (6.15, 270), "z-image-turbo": (6.15, 270),
    "wan2.1-t2v-1.3b": (1.42, 300), "wan2.1-t2v-14b": (14.3, 400), "wan2.2-t2v-a14b": (14.3, 400),
    "dit-xl-2": (0.675, 252), "sd3.5-large": (8.15, 529), "sd3.5-medium": (2.47, 385), "qwen-image": (20.4, 840),
    "hunyuan-video": (12.8, 520), "pixart-sigma": (0.61, 280), "sana-1.6b": (1.6, 160), "ltx-video": (1.92, 280),
    "cogvideox-2b": (1.69, 240), "cogvideox-5b": (5.57, 336), "chroma1-hd": (8.9, 418),
    "lumina-image-2.0": (2.61, 238),
}  # fmt: skip
"""Billions of stored numbers, from the model cards or the size of the released transformer's files (of one denoiser,
for wan2.2, which has two), and the linear layers in the blocks."""


def _walked(name: str) -> tuple[inspection.Inspection, int]:
    model = inspection.on_meta(json.loads((CONFIGS / f"{name}.json").read_text()), name)
    stored = sum(tensor.numel() for tensor in model.state_dict().values())
    assert all(parameter.is_meta for parameter in model.parameters())
    if name == "dit-xl-2":  # diffusers repeats the embedders of timestep and class in every block
        repeated = sum(p.numel() for p in model.transformer_blocks[0].norm1.emb.parameters())
        stored -= repeated * (len(model.transformer_blocks) - 1)
    return inspection.walk(model, watched=None, component="transformer", pipeline=""), stored


def test_every_config_has_its_published_size() -> None:
    assert {path.stem for path in CONFIGS.glob("*.json")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_size_layers_and_memory(name: str) -> None:
    found, stored = _walked(name)
    billions, linears = PUBLISHED[name]
    assert abs(stored / 1e9 - billions) < 0.02 * billions
    assert sum(group.count for group in found.groups) == linears
    quantized = sum(group.parameters for group in found.groups)
    assert quantized + sum(rest.parameters for rest in found.left) == found.parameters
    assert found.timestep is not None
    size = footprint(
        found.rows, parameters=found.parameters, recipe=resolve({"method": "adatsq"}), dtype="bfloat16",
        captured_rows=48, steps=50,
    )  # fmt: skip
    assert size.weights == 2 * found.parameters
    assert size.gram == 8 * max(group.in_features for group in found.groups) ** 2
    four, three = size.quantized[4], size.quantized[3]
    share = sum(row.size for row in found.rows) / found.parameters
    ideal = [found.parameters * (share * bits / 8 + (1 - share) * 2) for bits in (4, 3)]
    assert ideal[0] < four < 1.06 * ideal[0] and three < four < size.weights


def test_flux_shapes() -> None:
    groups = {group.pattern: group for group in _walked("flux1-dev")[0].groups}
    single = groups["single_transformer_blocks.*.proj_out"]
    assert (single.in_features, single.out_features, single.count) == (15360, 3072, 38)
    assert groups["transformer_blocks.*.norm1.linear"].kind == "conditioning"
    assert groups["transformer_blocks.*.ff.net.*.proj"].count == 19


def test_convolutions_of_sana_are_reported() -> None:
    found, _ = _walked("sana-1.6b")
    left = sum(rest.parameters for rest in found.left if rest.why == "a convolution, not nn.Linear")
    assert 0.4 < left / found.parameters < 0.6
