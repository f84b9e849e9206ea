"""The name of a repository on the hub, and which of its files are taken: against lists that are written by hand."""

import pytest

from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.hub_files import files_to_load
from adatsq_pipe.pipeline.hub_id import HubId, hub_id


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("org/name", HubId("org/name")),
        ("hf://black-forest-labs/FLUX.1-dev", HubId("black-forest-labs/FLUX.1-dev")),
        ("org/name@refs/pr/3", HubId("org/name", "refs/pr/3")),
        ("/models/flux", None),
        ("./org/name", None),
        ("a/b/c", None),
        ("name", None),
        ("s3://org/name", None),
    ],
)
def test_a_name_means_a_repository_or_none(name: str, meant: HubId | None) -> None:
    assert hub_id(name) == meant


@pytest.mark.parametrize("name", ["hf://", "hf://name", "hf://a/b/c", "hf://org/name@"])
def test_a_wrong_name_after_the_scheme_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="write hf://org/name"):
        hub_id(name)


SHARDS = [f"transformer/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
INDEX = "transformer/diffusion_pytorch_model.safetensors.index.json"
HALF = [
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "transformer/diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.fp16.json",
]
PLAIN = ["scheduler/scheduler_config.json", "transformer/config.json", "vae/config.json"]
REPOSITORY = [
    "model_index.json", "README.md", "flux1-dev.safetensors", "ae.safetensors", "dev_grid.jpg", *PLAIN, *SHARDS, INDEX,
    *HALF, "vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.bin",
    "text_encoder/pytorch_model.bin", "text_encoder/pytorch_model.fp16.bin", "text_encoder/flax_model.msgpack",
    "safety_checker/model.safetensors",
]  # fmt: skip
PARTS = ["scheduler", "text_encoder", "transformer", "vae"]
FIRST = {"model_index.json", "README.md", *PLAIN}


def test_one_copy_of_each_weight_is_taken_and_nothing_beside() -> None:
    weights = {*SHARDS, INDEX, "vae/diffusion_pytorch_model.safetensors", "text_encoder/pytorch_model.bin"}
    assert set(files_to_load(REPOSITORY, PARTS)) == FIRST | weights


def test_a_variant_is_taken_where_a_component_has_it() -> None:
    assert set(files_to_load(REPOSITORY, PARTS, "fp16")) == FIRST | {*HALF, "text_encoder/pytorch_model.fp16.bin"}
    assert set(files_to_load(REPOSITORY, PARTS, "bf16")) == set(files_to_load(REPOSITORY, PARTS))


def test_older_names_of_variants_are_known() -> None:
    older = [
        "transformer/diffusion_pytorch_model-00001-of-00001.fp16.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.fp16.index.json",
    ]
    assert files_to_load([*older, *SHARDS, INDEX], ["transformer"], "fp16") == older
    assert files_to_load([*older, *SHARDS, INDEX], ["transformer"]) == [*SHARDS, INDEX]


def test_a_component_that_is_a_pipeline_has_its_own_components() -> None:
    """As `Kandinsky`'s combined pipelines could have a prior in a folder of its own."""
    prior = [
        "prior/model_index.json", "prior/prior/config.json", "prior/prior/diffusion_pytorch_model.safetensors",
        "prior/text_encoder/model.fp16.safetensors", "prior/text_encoder/model.safetensors", "prior/scheduler/x.json",
    ]  # fmt: skip
    beside = ["prior/README.md", "prior/curve.png", "prior/prior/diffusion_pytorch_model.bin"]
    wanted = {name for name in prior if ".fp16." not in name}
    assert set(files_to_load([*prior, *beside], ["prior"])) == wanted
    half = {name for name in prior if name != "prior/text_encoder/model.safetensors"}
    assert set(files_to_load([*prior, *beside], ["prior"], "fp16")) == half


def test_of_folders_in_a_component_only_chat_templates_are_taken() -> None:
    own = ["tokenizer/tokenizer.json", "tokenizer/additional_chat_templates/tool.jinja", "transformer/config.json"]
    beside = ["transformer/original/model.safetensors", "transformer/checkpoint-1/config.json", "tokenizer/old/x.json"]
    assert set(files_to_load([*own, *beside], ["tokenizer", "transformer"])) == set(own)
