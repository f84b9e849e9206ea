"""Which files of a model folder count: folders made by hand, and what diffusers itself opens of them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from adatsq_pipe.storage.errors import UnusableModel
from adatsq_pipe.storage.model_files import (
    check_weights,
    components,
    copied_files,
    loaded_files,
    model_name,
    weight_files,
)

INDEX = {
    "_class_name": "FluxPipeline",
    "_diffusers_version": "0.35.0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "image_encoder": [None, None],
    "is_distilled": True,
}
LOADED = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "tokenizer_2/spiece.model",
    "tokenizer_2/tokenizer.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.json",
]
STRAY = [
    ".gitattributes",
    ".cache/huggingface/download/x.metadata",
    "README.md",
    "dev_grid.jpg",
    "flux1-dev.safetensors",
    "ae.safetensors",
    "onnx/transformer/model.onnx",
    "image_encoder/config.json",
    "image_encoder/model.safetensors",
    "runs/adatsq-run/run.json",
    "scheduler/notes.txt",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/pytorch_model.bin",
    "text_encoder/flax_model.msgpack",
    "text_encoder/openvino/model.xml",
    "tokenizer/note.txt",
    "tokenizer/README.md",
    "tokenizer/preview.png",
    "transformer/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.fp16.json",
    "transformer/diffusion_pytorch_model.fp16.safetensors.index.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "transformer/diffusion_pytorch_model-00003-of-00003.safetensors",
    "transformer/diffusion_pytorch_model.bin",
    "transformer/diffusion_pytorch_model.safetensors.bak",
    "transformer/optimizer.pt",
    "transformer/ema/diffusion_pytorch_model.safetensors",
]


def _write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def _index(path: Path, *shards: str) -> None:
    weights = {f"block.{i}.weight": shard for i, shard in enumerate(shards)}
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weights}))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkout of a whole repository: the pipeline, and all that lies beside it."""
    folder = tmp_path / "model"
    _write(folder, *LOADED, *STRAY)
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    shards = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    _index(folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json", *shards)
    return folder


def test_of_a_whole_repository_only_what_from_pretrained_reads_is_loaded(model: Path) -> None:
    assert loaded_files(model) == LOADED
    assert [path.name for path in weight_files(model, "transformer")] == [
        "diffusion_pytorch_model-00001-of-00002.safetensors",
        "diffusion_pytorch_model-00002-of-00002.safetensors",
    ]
    check_weights(model)


def test_a_copy_has_what_is_loaded_and_the_licence(model: Path) -> None:
    _write(model, "LICENSE.md", "NOTICE", "sampling.json")
    beside = {"LICENSE.md", "NOTICE", "sampling.json"}
    assert copied_files(model) == sorted({*LOADED, *beside})
    rest = copied_files(model, without=["transformer"])
    assert rest == sorted({*(name for name in LOADED if not name.startswith("transformer/")), *beside})


def test_the_list_is_what_diffusers_opens_of_a_pipeline(tiny_flux: Path, tmp_path: Path) -> None:
    """Without any one of the listed files it does not load, or loads another model; with nothing else it loads."""
    from diffusers import FluxPipeline

    from adatsq_pipe.storage.files import copy_files

    names = loaded_files(tiny_flux)
    assert {name for name in names if name.endswith(".safetensors")} == {
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    copy_files(tiny_flux, tmp_path / "copy", names)
    pipe = FluxPipeline.from_pretrained(tmp_path / "copy", local_files_only=True)
    assert pipe.tokenizer("a red circle").input_ids
    for name in names:
        if name.endswith(("model_index.json", "scheduler_config.json", ".safetensors")):
            (tmp_path / "copy" / name).rename(tmp_path / "away")
            with pytest.raises((OSError, ValueError)):
                FluxPipeline.from_pretrained(tmp_path / "copy", local_files_only=True)
            (tmp_path / "away").rename(tmp_path / "copy" / name)


def test_every_vocabulary_that_a_tokenizer_of_transformers_names_is_loaded(tmp_path: Path) -> None:
    spec = find_spec("transformers")
    assert spec is not None and spec.origin is not None
    names = set[str]()
    for path in (Path(spec.origin).parent / "models").glob("*/tokenization*.py"):
        for table in re.findall(r"vocab_files_names\s*=\s*\{(.*?)\}", path.read_text(), flags=re.I | re.S):
            names |= set(re.findall(r':\s*"([\w.]+\.\w+)"', table))
    assert len(names) > 10
    _write(tmp_path, *(f"tokenizer/{name}" for name in names))
    (tmp_path / "model_index.json").write_text(json.dumps({"tokenizer": ["transformers", "SomeTokenizer"]}))
    assert loaded_files(tmp_path) == sorted({"model_index.json", *(f"tokenizer/{name}" for name in names)})


@pytest.mark.parametrize(
    ("library", "there", "read"),
    [
        ("diffusers", ["diffusion_pytorch_model.safetensors", "model.safetensors"], 0),
        ("diffusers", ["diffusion_pytorch_model.bin"], 0),
        ("transformers", ["model.safetensors", "pytorch_model.bin"], 0),
        ("transformers", ["pytorch_model.bin", "diffusion_pytorch_model.safetensors"], 0),
        ("stable_diffusion", ["model.safetensors"], 0),
    ],
)
def test_weights_have_the_names_that_their_library_looks_for(
    library: str, there: Sequence[str], read: int, tmp_path: Path
) -> None:
    _write(tmp_path, "part/config.json", *(f"part/{name}" for name in there))
    (tmp_path / "model_index.json").write_text(json.dumps({"part": [library, "SomeModel"]}))
    assert loaded_files(tmp_path) == ["model_index.json", "part/config.json", f"part/{there[read]}"]
    check_weights(tmp_path)


def test_a_model_of_a_pipelines_own_module_is_known_by_its_config(tmp_path: Path) -> None:
    _write(tmp_path, "connectors/diffusion_pytorch_model.safetensors", "connectors/model.safetensors")
    (tmp_path / "connectors" / "config.json").write_text('{"_class_name": "LTX2TextConnectors"}')
    (tmp_path / "model_index.json").write_text(json.dumps({"connectors": ["ltx2", "LTX2TextConnectors"]}))
    assert loaded_files(tmp_path)[:2] == ["connectors/config.json", "connectors/diffusion_pytorch_model.safetensors"]


def test_of_an_index_and_a_single_file_each_library_has_its_own_first(tmp_path: Path) -> None:
    for part, stem in (("ours", "diffusion_pytorch_model"), ("theirs", "model")):
        _write(tmp_path, f"{part}/config.json", f"{part}/{stem}.safetensors", f"{part}/a.safetensors")
        _index(tmp_path / part / f"{stem}.safetensors.index.json", "a.safetensors")
    index = {"ours": ["diffusers", "SomeModel"], "theirs": ["transformers", "SomeModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert loaded_files(tmp_path)[1:] == [
        "ours/a.safetensors",
        "ours/config.json",
        "ours/diffusion_pytorch_model.safetensors.index.json",
        "theirs/config.json",
        "theirs/model.safetensors",
    ]


def test_a_text_encoder_in_shards_of_torchs_own_format_with_an_adapter_is_read_whole(tmp_path: Path) -> None:
    _write(tmp_path, "part/config.json", "part/generation_config.json", "part/a.bin", "part/b.bin", "part/c.bin")
    _write(tmp_path, "part/adapter_config.json", "part/adapter_model.safetensors", "part/tokenizer.json")
    _index(tmp_path / "part" / "pytorch_model.bin.index.json", "b.bin", "a.bin")
    (tmp_path / "model_index.json").write_text(json.dumps({"part": ["transformers", "SomeModel"]}))
    assert loaded_files(tmp_path) == [
        "model_index.json",
        "part/a.bin",
        "part/adapter_config.json",
        "part/adapter_model.safetensors",
        "part/b.bin",
        "part/config.json",
        "part/generation_config.json",
        "part/pytorch_model.bin.index.json",
    ]
    check_weights(tmp_path)


def test_a_pipeline_inside_a_pipeline_and_a_component_in_the_root_are_followed(tmp_path: Path) -> None:
    _write(tmp_path, "prior/scheduler/scheduler_config.json", "tokenizer.json", "config.json", "model.safetensors")
    (tmp_path / "prior" / "model_index.json").write_text(json.dumps({"scheduler": ["diffusers", "DDPMScheduler"]}))
    index = {
        "prior": ["diffusers", "SomePipeline"],
        "tokenizer": ["transformers", "SomeTokenizer"],
        "text_encoder": ["transformers", "SomeModel"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert loaded_files(tmp_path) == [
        "config.json",
        "model.safetensors",
        "model_index.json",
        "prior/model_index.json",
        "prior/scheduler/scheduler_config.json",
        "tokenizer.json",
    ]


def _only(model: Path, part: str, *names: str) -> None:
    for path in (model / part).iterdir():
        if path.name != "config.json":
            path.unlink() if not path.is_dir() else path.rename(model / f"away-{path.name}")
    _write(model, *(f"{part}/{name}" for name in names))


@pytest.mark.parametrize(
    ("part", "names", "message"),
    [
        ("transformer", ["diffusion_pytorch_model.fp16.safetensors"], r"variant fp16 only.*variant='fp16'.*save_pret"),
        ("transformer", ["diffusion_pytorch_model.bf16-00001-of-00002.safetensors"], "variant bf16 only"),
        ("transformer", ["diffusion_pytorch_model-00001-of-00002.fp16.safetensors"], "variant fp16 only"),
        ("text_encoder", ["pytorch_model.fp16.bin"], "variant fp16 only"),
        ("text_encoder", ["diffusion_pytorch_model.safetensors"], r"no weights that from_pretrained reads \(model\."),
        ("transformer", ["diffusion_pytorch_model.bin.index.json", "x-00001-of-00002.bin"], "it has x-00001-of"),
        ("transformer", ["flux1-dev.safetensors"], r"it has flux1-dev\.safetensors; save the pipeline with save_pretr"),
        ("transformer", [], "copy the whole model folder"),
    ],
)  # fmt: skip
def test_weights_that_from_pretrained_would_not_read_are_refused_with_what_to_do(
    part: str, names: list[str], message: str, model: Path
) -> None:
    _only(model, part, *names)
    with pytest.raises(UnusableModel, match=rf"model/{part} has .*{message}.*\(nothing was started\)"):
        check_weights(model)
    if names:
        with pytest.raises(UnusableModel, match=message):
            check_weights(model, configs_suffice=True)
    else:
        check_weights(model, configs_suffice=True)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"metadata": {}, "weight_map": {"a": "gone.safetensors"}}', r"names gone\.safetensors, which is missing"),
        ('{"metadata": {}, "weight_map": {"a": "../x.safetensors"}}', r"names '\.\./x\.safetensors', which is no file"),
        ('{"weight_map": {"a": "config.json"}}', "is no index of weights"),
        ('{"metadata": {}, "weight_map": []}', "is no index of weights"),
        ("[]", "is no index of weights"),
        ("{", "is no index of weights"),
    ],
)
def test_an_index_that_leads_nowhere_is_refused(index: str, message: str, model: Path) -> None:
    (model / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(index)
    for suffice in (False, True):
        with pytest.raises(UnusableModel, match=message):
            check_weights(model, configs_suffice=suffice)


def test_a_component_without_its_config_is_refused(model: Path) -> None:
    (model / "text_encoder" / "config.json").unlink()
    with pytest.raises(UnusableModel, match=r"text_encoder has no config\.json"):
        check_weights(model)


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer", "scheduler"])
def test_a_component_that_was_not_copied_is_refused_unless_the_pipeline_does_not_take_it(
    part: str, model: Path, tmp_path: Path
) -> None:
    (model / part).rename(tmp_path / "away")
    with pytest.raises(UnusableModel, match=rf"model/{part} is missing.* names that component; copy the whole model"):
        check_weights(model, taken=["transformer", "scheduler", "text_encoder", "tokenizer", "tokenizer_2"])
    check_weights(model, taken={"transformer", "scheduler", "text_encoder", "tokenizer"} - {part})
    check_weights(model, configs_suffice=True, taken=[part])
    check_weights(model)
    if part != "text_encoder":
        (model / part).mkdir()
        with pytest.raises(UnusableModel, match=rf"model/{part} is missing or empty"):
            check_weights(model)


@pytest.mark.parametrize("name", ["transformer/config.json", "tokenizer/vocab.json", "text_encoder/model.safetensors"])
def test_a_link_out_of_the_folder_is_not_followed(name: str, model: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    (model / name).rename(secret)
    (model / name).symlink_to(secret)
    for read in (loaded_files, copied_files, check_weights):
        with pytest.raises(UnusableModel, match=rf"{name} is a link to .*secret, outside of the model folder"):
            read(model)


def test_a_folder_that_is_a_link_out_of_the_folder_is_not_followed(model: Path, tmp_path: Path) -> None:
    (model / "text_encoder").rename(tmp_path / "elsewhere")
    (model / "text_encoder").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnusableModel, match=r"text_encoder/config\.json is a link to .*outside of the model folder"):
        loaded_files(model)


@pytest.mark.parametrize("name", ["LICENSE", "sampling.json", "README.md"])
def test_a_file_outside_that_no_loader_reads_is_only_not_copied(name: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(tmp_path / "secret")
    assert copied_files(model, card=["README.md"]) == sorted({*LOADED, "README.md"} - {name})
    (tmp_path / "secret").rename(model / "kept")
    (model / name).unlink()
    (model / name).symlink_to("kept")
    assert name in copied_files(model, card=["README.md"])


def test_a_link_inside_the_folder_is_followed(model: Path) -> None:
    (model / "tokenizer").rename(model / "words")
    (model / "tokenizer").symlink_to("words")
    assert loaded_files(model) == LOADED


@pytest.mark.parametrize("name", ["transformer/config.json", "tokenizer/vocab.json", "model_index.json", "scheduler"])
def test_a_dangling_link_is_named_with_its_target(name: str, model: Path) -> None:
    (model / name).rename(model / "moved")
    (model / name).symlink_to("../nowhere")
    if name == "model_index.json":
        (model / "moved").rename(model / "away")
    with pytest.raises(UnusableModel, match=rf"{name}.* is a link to \.\./nowhere, which does not exist; copy"):
        loaded_files(model)


def test_a_dangling_link_that_no_loader_reads_is_left_alone(model: Path) -> None:
    for name in ("preview.png", "transformer/notes.md", "LICENSE", "onnx/transformer/other.onnx"):
        (model / name).symlink_to("nowhere")
    assert loaded_files(model) == LOADED and "LICENSE" not in copied_files(model)


def test_neither_a_device_nor_a_loop_of_links_is_read(model: Path) -> None:
    (model / "transformer" / "config.json").unlink()
    (model / "transformer" / "config.json").symlink_to("/dev/zero")
    with pytest.raises(UnusableModel, match="/dev/zero, outside of the model folder"):
        loaded_files(model)
    (model / "transformer" / "config.json").unlink()
    (model / "transformer" / "config.json").symlink_to("config.json")
    with pytest.raises(UnusableModel, match=r"is a link to config\.json, which does not exist"):
        loaded_files(model)


@pytest.mark.parametrize("shared", [False, True])
def test_links_into_the_hubs_blob_store_are_followed(shared: bool, model: Path, tmp_path: Path) -> None:
    """A download cache has its files in `blobs`; since huggingface_hub 2 these may be links into one of all models."""
    repository = tmp_path / "hub" / "models--black-forest-labs--FLUX.1-dev"
    snapshot = repository / "snapshots" / "0ef5fff789c832c5c7f4e127f94c8b54bbcced44"
    (repository / "blobs").mkdir(parents=True)
    (tmp_path / "hub" / "blobs" / "ab").mkdir(parents=True)
    for i, name in enumerate((*LOADED, "LICENSE.md")):
        _write(model, "LICENSE.md")
        blob = repository / "blobs" / f"{i:040x}"
        if shared:
            (model / name).rename(tmp_path / "hub" / "blobs" / "ab" / f"{i:064x}")
            blob.symlink_to(f"../../blobs/ab/{i:064x}")
        else:
            (model / name).rename(blob)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    assert loaded_files(snapshot) == LOADED
    assert "LICENSE.md" in copied_files(snapshot)
    check_weights(snapshot)
    assert model_name(snapshot) == "black-forest-labs/FLUX.1-dev"
    (tmp_path / "outside").write_text("{}")
    (snapshot / "transformer" / "config.json").unlink()
    (snapshot / "transformer" / "config.json").symlink_to(tmp_path / "outside")
    with pytest.raises(UnusableModel, match="outside of the model folder"):
        loaded_files(snapshot)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("hub/models--Wan-AI--Wan2.2-TI2V-5B-Diffusers/snapshots/ab12", "Wan-AI/Wan2.2-TI2V-5B-Diffusers"),
        ("hub/models--gpt2/snapshots/ab12", "gpt2"),
        ("models/FLUX.1-dev", "FLUX.1-dev"),
        ("models--a--b/FLUX.1-dev", "FLUX.1-dev"),
        ("mine/snapshots/step-3", "step-3"),
    ],
)
def test_a_snapshot_has_the_name_of_its_repository(path: str, name: str) -> None:
    assert model_name(Path("/data") / path) == name


@pytest.mark.parametrize("index", ["[]", "3", "{", '{"a": 3, "b": ["diffusers"], "../c": ["diffusers", "X"]}'])
def test_an_index_of_something_else_has_no_components(index: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(index)
    assert components(tmp_path) == {} and loaded_files(tmp_path) == ["model_index.json"]
