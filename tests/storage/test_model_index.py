"""A pipeline folder whose JSON files hold something else: one line that names the file, the key and the value."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from adatsq_pipe.storage.checkpoint import find_pipeline, stored_sizes
from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.model_index import check_configs, component_config, is_component, read_index

RIGHT = {
    "_class_name": "FluxPipeline",
    "_diffusers_version": "0.39.0",
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "safety_checker": [None, None],
    "boundary_ratio": 0.9,
    "text_encoder_layers": [10, 20, 30],
}
NO_OBJECT = {
    "a list": "[1]",
    "a number": "5",
    "a text": '"a"',
    "nothing": "",
    "null": "null",
    "a nest": '{"a":' * 10**5,
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a pipeline folder whose model_index.json has other values."""
    for part in ("transformer", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text('{"_class_name": "Any"}')

    def written(**changed: object) -> Path:
        (tmp_path / "model_index.json").write_text(json.dumps({**RIGHT, **changed}))
        return tmp_path

    return written


def test_names_components_and_further_values_are_read_as_they_are(write: Write) -> None:
    assert read_index(write()) == find_pipeline(write()) == RIGHT
    assert read_index(write(_class_name=["pipeline", "QuantizedFluxPipeline"]))["_class_name"][0] == "pipeline"


@pytest.mark.parametrize("text", NO_OBJECT.values(), ids=NO_OBJECT)
def test_a_model_index_that_is_no_object_is_named(text: str, write: Write) -> None:
    folder = write()
    (folder / "model_index.json").write_text(text)
    with pytest.raises(StorageError, match=r"model_index\.json is no JSON object .*; restore the file"):
        find_pipeline(folder)


@pytest.mark.parametrize("value", [5, None, [], {}, ["one"], [1, 2]])
def test_a_class_name_of_another_type_is_named(value: object, write: Write) -> None:
    with pytest.raises(StorageError, match=r"model_index\.json: _class_name is .*not the name of a pipeline class"):
        find_pipeline(write(_class_name=value))


@pytest.mark.parametrize("key", ["transformer", "vae"])
@pytest.mark.parametrize("value", [5, "diffusers", [], {}, {"a": 1}, ["diffusers"], [1, 2], [None, "X"], True])
def test_a_component_of_another_type_is_named(value: object, key: str, write: Write) -> None:
    for look in (find_pipeline, stored_sizes):
        with pytest.raises(StorageError, match=rf'{key} is .*in place of \["library", "class"\]'):
            look(write(**{key: value}))
    assert not is_component(value)


def test_a_version_of_another_type_is_named(write: Write) -> None:
    with pytest.raises(StorageError, match=r"_diffusers_version is 0\.39, not a version"):
        find_pipeline(write(_diffusers_version=0.39))


@pytest.mark.parametrize("text", NO_OBJECT.values(), ids=NO_OBJECT)
@pytest.mark.parametrize("name", ["transformer/config.json", "vae/config.json", "vae/scheduler_config.json"])
def test_a_config_that_is_no_object_is_named(name: str, text: str, write: Write) -> None:
    folder = write()
    check_configs(folder, RIGHT)
    (folder / name).write_text(text)
    with pytest.raises(StorageError, match=rf"{name} is no JSON object"):
        check_configs(folder, RIGHT)


@pytest.mark.parametrize("value", [5, None, [], {}])
def test_the_class_name_of_a_denoiser_s_config_is_a_text(value: object, write: Write) -> None:
    path = write() / "transformer" / "config.json"
    assert component_config(write(), "transformer") == {"_class_name": "Any"}
    path.write_text(json.dumps({"_class_name": value}))
    with pytest.raises(StorageError, match=r"_class_name is .*not the name of a class"):
        component_config(write(), "transformer")
    path.unlink()
    with pytest.raises(StorageError, match=r"transformer has no config\.json"):
        component_config(write(), "transformer")
