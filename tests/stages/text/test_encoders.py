"""Which text encoders are quantized, in which parts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adatsq_pipe.stages.base.errors import NotTaken
from adatsq_pipe.stages.text.encoders import TextEncoderSettings, check_encoders, cut, encoders_of


def _pipeline(folder: Path, kind: str = "NoClass", **parts: tuple[str, dict[str, Any], list[str]]) -> Path:
    """A folder of components: (library, config, further files)."""
    index: dict[str, Any] = {"_class_name": kind, "transformer": ["diffusers", "X"]}
    (folder / "transformer").mkdir(parents=True)
    for name, (library, config, files) in parts.items():
        index[name] = [library, "T5EncoderModel"]
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        for file in ("model.safetensors", *files):
            (folder / name / file).write_text("x")
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_encoders_are_the_components_called_so_and_some_stay(tmp_path: Path) -> None:
    folder = _pipeline(
        tmp_path / "model",
        text_encoder=("transformers", {}, []),
        text_encoder_2=("kolors", {}, []),
        text_encoder_3=("transformers", {"quantization_config": {"quant_method": "bitsandbytes"}}, []),
        text_encoder_4=("transformers", {}, ["adapter_config.json"]),
        image_encoder=("transformers", {}, []),
    )
    assert {e.name: e.left for e in encoders_of(folder)} == {
        "text_encoder": "",
        "text_encoder_2": "its class is of kolors, not of transformers",
        "text_encoder_3": "it is quantized already (bitsandbytes)",
        "text_encoder_4": "a LoRA lies beside its weights; fuse it and save the encoder",
    }
    check_encoders(folder, TextEncoderSettings(bits=4))


def test_a_component_that_the_pipeline_s_class_does_not_take_is_not_loaded(tmp_path: Path) -> None:
    three = {name: ("transformers", {}, []) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")}
    found = encoders_of(_pipeline(tmp_path / "model", "FluxPipeline", **three))  # type: ignore[arg-type]
    assert [e.name for e in found] == ["text_encoder", "text_encoder_2"]


def test_a_pipeline_without_encoders_is_refused_where_they_are_to_be_quantized(tmp_path: Path) -> None:
    none = _pipeline(tmp_path / "none", "DiTPipeline")
    check_encoders(none, TextEncoderSettings())
    with pytest.raises(
        NotTaken, match=r"^text_encoder.bits is 8, and DiTPipeline has no text encoder; set text_encoder"
    ):
        check_encoders(none, TextEncoderSettings(bits=8))
    other = _pipeline(tmp_path / "other", text_encoder=("kolors", {}, []))
    with pytest.raises(NotTaken, match=r"no text encoder that can be quantized \(text_encoder: its class is of kolors"):
        check_encoders(other, TextEncoderSettings(bits=8))


def test_tensors_are_cut_in_the_order_of_layers() -> None:
    sizes = {"b.10.w": 4, "b.2.w": 4, "b.2.bias": 1, "a": 9, "b.3.w": 3}
    assert cut(sizes, 8) == [["a"], ["b.2.bias", "b.2.w", "b.3.w"], ["b.10.w"]]
    assert cut({}, 8) == []
