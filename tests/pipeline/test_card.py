"""The card of a finished model: its front matter as the hub reads it, its figures, its checksums, and where a model
comes from."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from adatsq_pipe.pipeline import card as cards
from adatsq_pipe.pipeline import report
from adatsq_pipe.pipeline.config import RunConfig
from adatsq_pipe.pipeline.kind_quality import Figure, KindQuality
from adatsq_pipe.pipeline.origin import Origin, origin_of, task_of
from adatsq_pipe.stages.export.formats.self_contained import _card
from adatsq_pipe.stages.export.model_card import LOADING
from adatsq_pipe.storage.rundir import RunDir
from tests.support import made_run as made

LICENCE = {"license": "other", "license_name": "flux-1-dev", "license_link": "LICENSE.md", "language": ["en"]}


def folder_of(path: Path, card: dict[str, Any] | None = None, **index: object) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline", **index}))
    if card is not None:
        (path / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n# Original\n")
    return path


class Made:
    """A made-up finished run whose assembled folder has weights, and its card."""

    def __init__(self, folder: Path, model: str = "model", card: dict[str, Any] | None = None, **request: Any) -> None:
        store = made.store(folder, model={"call": {"height": 32, "guidance_scale": 3.5}})
        context = made.drawn(store)
        source = folder_of(folder / model, card)
        self.context = replace(context, model=replace(context.model, path=source))
        manifest = context.manifest("assemble")
        sizes = manifest.read("model").value
        manifest.discard("model")
        unit = manifest.open_unit("model")
        kind = ["diffusers", "FluxTransformer2DModel"]
        (unit / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline", "transformer": kind}))
        (unit / "transformer").mkdir()
        (unit / "transformer" / "config.json").write_text("{}")
        self.weights = b"the weights of the transformer"
        (unit / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(self.weights)
        manifest.commit("model", value=sizes)
        self.config: RunConfig = replace(made.config(store), model=source, request=request)
        self.summary = report.summarize(self.config, RunDir.at(context.run), self.context)
        self.text = cards.card(self.config, self.context, self.summary)
        _, head, self.body = self.text.split("---\n", 2)
        self.head: dict[str, Any] = yaml.safe_load(head)


def test_the_front_matter_is_what_the_hub_reads(tmp_path: Path) -> None:
    found = Made(tmp_path, "models--black-forest-labs--FLUX.1-dev/snapshots/0ef5fff789", LICENCE | {"tags": ["x"]})
    assert found.head == {
        "base_model": "black-forest-labs/FLUX.1-dev",
        "base_model_relation": "quantized",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "license": "other",
        "license_name": "flux-1-dev",
        "license_link": "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
        "language": ["en"],
        "tags": ["adatsq", "quantized", "post-training-quantization", "w4a4"],
    }
    parsed = ModelCard(found.text).data
    assert (parsed.base_model, parsed.library_name) == ("black-forest-labs/FLUX.1-dev", "diffusers")
    assert parsed.license == "other" and parsed.pipeline_tag == "text-to-image"
    assert "[black-forest-labs/FLUX.1-dev](https://huggingface.co/black-forest-labs/FLUX.1-dev)" in found.body
    assert "0ef5fff789" not in found.text and "Licence: flux-1-dev, that of the original." in found.body


def test_nothing_is_claimed_of_an_original_that_says_nothing(tmp_path: Path) -> None:
    found = Made(tmp_path)
    assert not {"base_model", "base_model_relation", "license"} & set(found.head)
    assert "from `model` (FluxPipeline)" in found.body and "Its licence is that of the original model." in found.body


def test_the_figures_are_the_runs_with_95_percent_intervals(tmp_path: Path) -> None:
    found = Made(tmp_path)
    half = 1.96 * made.error_of_mean(made.PSNR)
    assert f"| PSNR of pictures, dB | {sum(made.PSNR) / 4:.1f} ± {half:.1f} | 30.0 |" in found.body
    errors = 1.96 * made.error_of_mean(made.ERRORS)
    assert f"| error of latents, relative | {sum(made.ERRORS) / 4:.4f} ± {errors:.4f} | 0.0500 |" in found.body
    assert "on 2 held-out captions x 2 seeds" in found.body and "matches the prompt" not in found.body
    assert "- weights: 4.38 bits on average with scales and zero points, 3 layers" in found.body
    line = "- activations: 4.20 bits on average over timesteps and layers, 4.10 weighted by MACs"
    assert f"{line}\n" in found.body
    otherwise = replace(found.summary, bits=replace(found.summary.bits, activations_run=4.5))
    body = cards.card(found.config, found.context, otherwise)
    assert f"{line}; the held-out pictures ran at 4.50\n" in body
    assert "| quantized layers | 800 B | 200 B |" in found.body and "| transformer | 1.20 kB | 500 B |" in found.body
    assert "- layers whose solver needed more damping than configured: 2" in found.body
    assert "- largest weight error of a layer: 0.07 (" in found.body
    assert "```text\na\nb\n```" in found.body, "the held-out captions"
    assert "`height=32, guidance_scale=3.5`" in found.body


def test_results_by_kind_stand_in_a_table_of_their_own(tmp_path: Path) -> None:
    found = Made(tmp_path)
    assert "kind of caption" not in found.body
    figure = Figure(mean=31.25, interval=1.5)
    kind = KindQuality(
        kind="a|b *c*", captions=3, pictures=6, latent_db=figure, psnr=figure, ssim=Figure(mean=0.5, interval=None)
    )
    summary = replace(found.summary, quality=replace(found.summary.quality, by_kind=[kind]))
    body = cards.card(found.config, found.context, summary)
    assert "| kind of caption | captions |" in body and r"| a\|b \*c\* | 3 | 31.2 ± 1.5 | 0.500 |" in body


def test_checksums_are_those_of_the_weights(tmp_path: Path) -> None:
    found = Made(tmp_path)
    listed = re.findall(r"^([0-9a-f]{64})  (\S+)$", found.body, re.MULTILINE)
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert listed == [(hashlib.sha256(found.weights).hexdigest(), name)]


def test_the_command_makes_the_model_again_without_paths_of_this_machine(tmp_path: Path) -> None:
    asked = {
        "model": {"path": "/secret/place/flux", "call": {"height": 64}},
        "cluster": {"executor": "inline", "workers": 7},
        "data": {"prompts": ["a secret"]},
        "search": {"budget": 3.6},
        "evaluate": {"prompts_file": "/home/me/my captions.txt", "seeds": 5},
        "recipe": {"method": "endpoint", "weight_bits": 6},
    }
    found = Made(tmp_path, preset="w3a3", tables=asked)
    (line,) = re.findall(r"^adatsq-pipe run .*$", found.body, re.MULTILINE)
    assert shlex.split(line) == [
        "adatsq-pipe", "run", "--model", "model", "--preset", "w3a3",
        "--set", "model.call.height=64",
        "--set", 'data.prompts_file="calibration-captions.txt"',
        "--set", "recipe.weight_bits=6",
        "--set", "search.budget=3.6",
        "--set", 'evaluate.prompts_file="held-out-captions.txt"', "--set", "evaluate.seeds=5",
    ]  # fmt: skip
    assert not re.search(r"secret|/home|inline", found.text)


def test_settings_that_say_what_would_be_anyway_are_no_part_of_the_command(tmp_path: Path) -> None:
    """`pick RUN --mean-bits 0` writes such a one, and the card stays as it was."""
    found, origin = Made(tmp_path), origin_of(folder_of(tmp_path / "mine"))
    plain = cards.command(replace(found.config, request={}), origin)
    assert plain == "adatsq-pipe run --model scenes/flux-dev"
    same = {"assemble": {"mean_bits": 0.0}, "recipe": {"method": "endpoint"}, "search": {"budget": 4.0}, "model": {}}
    assert cards.command(replace(found.config, request={"preset": "w4a4", "tables": same}), origin) == plain


def test_equal_runs_have_equal_cards(tmp_path: Path) -> None:
    first, second = Made(tmp_path / "a"), Made(tmp_path / "b")
    assert first.text == second.text
    assert str(tmp_path) not in first.text


def test_the_snippets_of_the_card_are_python_and_its_pictures_lie_beside_it(tmp_path: Path) -> None:
    found = Made(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", found.body, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "README.md", "exec")
    assert LOADING in found.body
    assert re.findall(r"!\[[^\]]*\]\(([^)]*)\)", found.body) == ["sheet.png", "policy.png"]


def test_a_self_contained_folder_says_how_it_loads_and_keeps_the_rest(tmp_path: Path) -> None:
    text = _card(found := Made(tmp_path).text)
    assert "import adatsq_pipe" not in text and "trust_remote_code=True" in text and "export FOLDER" not in text
    assert text.count("## Use\n") == 1 and "## What it scores" in text
    assert text.split("## Use\n")[0] == found.split("## Use\n")[0]


@pytest.mark.parametrize(
    ("named", "repository"),
    [
        ("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-dev"),
        ("/home/me/.cache/huggingface/hub/models--Wan-AI--Wan2.1-T2V-14B/snapshots/0ef5", "Wan-AI/Wan2.1-T2V-14B"),
        ("/models/flux", ""), ("./flux", ""), ("../a/b", ""), ("models/flux", ""), ("flux", ""), ("a/b/c", ""),
        ("C:\\models\\flux", ""), ("", ""), (None, ""), (["a/b"], ""),
    ],
)  # fmt: skip
def test_the_repository_is_named_only_where_the_original_says_it(
    named: object, repository: str, tmp_path: Path
) -> None:
    origin = origin_of(folder_of(tmp_path / "mine", _name_or_path=named))
    assert origin.repository == repository and origin.name == (repository or "mine")


def test_the_base_of_an_original_without_a_name_is_taken_from_its_card(tmp_path: Path) -> None:
    origin = origin_of(folder_of(tmp_path, {"base_model": ["acme/one", "not a name", "acme/two"]}))
    assert (origin.repository, origin.ancestors) == ("", ("acme/one", "acme/two"))
    summary: Any = type("S", (), {"bits": type("B", (), {"weights_mean": 4.0, "activations_mean": 4.0})})
    head = cards.front_matter(origin, "text-to-image", summary)
    assert head["base_model"] == ["acme/one", "acme/two"] and "base_model_relation" not in head


def test_a_licence_file_that_is_copied_stays_a_link_and_one_that_is_not_goes(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mine", LICENCE)
    assert "license_link" not in origin_of(folder).inherited
    (folder / "LICENSE.md").write_text("terms")
    assert origin_of(folder).inherited["license_link"] == "LICENSE.md"
    folder_of(folder, LICENCE | {"license_link": "https://acme.org/terms"})
    assert origin_of(folder).inherited["license_link"] == "https://acme.org/terms"


@pytest.mark.parametrize(
    ("pipeline", "clips", "images", "task"),
    [
        ("FluxPipeline", False, False, "text-to-image"),
        ("FluxImg2ImgPipeline", False, False, "image-to-image"),
        ("QwenImageEditPipeline", False, True, "image-to-image"),
        ("Flux2Pipeline", False, True, "image-to-image"),
        ("DiTPipeline", False, False, "unconditional-image-generation"),
        ("WanPipeline", True, False, "text-to-video"),
        ("WanImageToVideoPipeline", True, True, "image-to-video"),
        ("LTXPipeline", True, True, "image-to-video"),
        ("WanVideoToVideoPipeline", True, False, "video-to-video"),
    ],
)
def test_the_task_follows_the_class_the_captions_and_what_is_drawn(
    pipeline: str, clips: bool, images: bool, task: str
) -> None:
    origin = Origin(name="m", repository="", ancestors=(), pipeline=pipeline, inherited={}, task="")
    assert task_of(origin, clips=clips, images=images) == task
    assert task_of(replace(origin, task="any-to-any"), clips=clips, images=images) == "any-to-any"


def test_captions_with_backticks_stay_inside_their_block() -> None:
    assert cards.fenced("a ``` b") == "````text\na ``` b\n````"


def test_sizes_are_in_units_that_fit() -> None:
    sizes = {999: "999 B", 1_200: "1.20 kB", 4_330_000: "4.33 MB", 23_800_000_000: "23.80 GB"}
    assert {count: cards._size(count) for count in sizes} == sizes
