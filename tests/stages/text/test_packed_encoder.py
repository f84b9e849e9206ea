"""Text encoders in codes: weights as computed by hand, and outputs as of a plain model with those weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

import adatsq_pipe.stages.runtime  # noqa: F401  (registers the quantizer)
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.runtime import text_layers
from adatsq_pipe.stages.runtime.text_quantizer import AdatsqTextConfig
from adatsq_pipe.stages.text import encoders, text_encoder_worker
from adatsq_pipe.stages.text.footprint import footprints
from adatsq_pipe.stages.text.packed_folder import packed_encoders, write_encoder
from adatsq_pipe.stages.text.stored_encoder import stored_encoder
from adatsq_pipe.stages.text.text_encoder import units_of
from adatsq_pipe.stages.text.text_encoder_worker import RoundEncoders
from adatsq_pipe.storage.files import link_or_copy
from tests.support.made_store import make_store
from tests.zoo import parts

transformers.utils.logging.disable_progress_bar()


def t5(**more: Any) -> T5EncoderModel:
    sizes = {"vocab_size": 61, "d_model": 96, "d_kv": 8, "d_ff": 100, "num_layers": 2, "num_heads": 4}
    return T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu", tie_word_embeddings=False, **more))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "t5": t5, "umt5": parts.umt5, "clip": parts.clip, "clip-projected": parts.clip_projected, "gemma": parts.gemma,
    "gemma2": parts.gemma2, "gemma3": parts.gemma3, "qwen2.5-vl": parts.qwen_vl, "qwen3": parts.qwen3,
    "bert": parts.bert,
}  # fmt: skip


def pipeline_of(model: nn.Module, folder: Path) -> Path:
    """A pipeline folder with the model as its only text encoder."""
    model.save_pretrained(folder / "text_encoder")  # type: ignore[operator]
    (folder / "transformer").mkdir()
    index = {"text_encoder": ["transformers", type(model).__name__], "transformer": ["diffusers", "X"]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "NoClass", **index}))
    return folder


def packed(model: nn.Module, tmp_path: Path, bits: int) -> tuple[Path, Context]:
    """The folder of the model in codes, and the context of the units that it was made of."""
    pipeline_of(model, tmp_path / "model")
    made = make_store(tmp_path, text_encoder={"bits": bits}, compute={"device": "cpu", "dtype": "float32"}).context
    context = replace(made, fingerprints={**made.fingerprints, "text_encoder": "9" * 64})
    worker = RoundEncoders(context)
    for unit in units_of(context):
        worker(unit)
    write_encoder(context, "text_encoder", tmp_path / "out", link_or_copy)
    return tmp_path / "out" / "text_encoder", context


def by_hand(stored: dict[str, Tensor], name: str, bits: int, width: int) -> Tensor:
    """The weight that stored codes stand for, every code taken out of its bytes alone."""
    data, scale, zero = (stored[f"{name}.{part}"] for part in ("weight", "scale", "zero"))
    length, mask, weight = -(-width // 8), 2**bits - 1, torch.zeros(len(data), width, dtype=torch.float64)
    group = width // scale.shape[1]
    for row, bytes_of in enumerate(data.tolist()):
        for column in range(width):
            segment, place = divmod(column, length)
            plane, shift = divmod(segment * bits, 8)
            code = ((bytes_of[plane * length + place] & 255) >> shift) & mask
            g = column // group
            weight[row, column] = (code - int(zero[row, g])) * float(scale[row, g])
    return weight.float()


def outputs(model: nn.Module) -> Tensor:
    ids = torch.arange(3, 3 + 12).view(2, 6)
    with torch.no_grad():
        found = model.eval()(input_ids=ids, output_hidden_states=True)
    return torch.stack(found.hidden_states)


@pytest.mark.parametrize(("name", "bits"), [*((name, 4) for name in MODELS), ("t5", 8), ("gemma3", 8)])
def test_the_loaded_encoder_is_the_plain_one_with_the_weights_of_the_codes(
    name: str, bits: int, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model = MODELS[name]()
    folder, _ = packed(model, tmp_path, bits)
    plain, stored = (
        load_file(tmp_path / "model/text_encoder/model.safetensors"),
        load_file(folder / "model.safetensors"),
    )
    changed = {n.removesuffix(".scale") for n in stored if n.endswith(".scale")}
    linears = sum(type(m) is nn.Linear for m in model.modules())
    assert len(changed) in (linears, linears + 1)
    for module in changed:
        whole = plain[f"{module}.weight"]
        width = whole.shape[1]
        packed_bits = 8 if stored[f"{module}.weight"].shape[1] == 8 * -(-width // 8) else 4
        inside = any(part.isdigit() for part in module.split("."))
        assert packed_bits == (bits if inside else 8)
        plain[f"{module}.weight"] = by_hand(stored, module, packed_bits, width)
        step = (whole.amax(1).clamp(min=0) - whole.amin(1).clamp(max=0)) / (2**packed_bits - 1)
        error = (plain[f"{module}.weight"] - whole).abs().amax(1)
        assert bool((error <= step * (1.02 if packed_bits == 8 else 4)).all())
    save_file(plain, tmp_path / "model/text_encoder/model.safetensors", metadata={"format": "pt"})
    expected = outputs(type(model).from_pretrained(tmp_path / "model/text_encoder"))  # type: ignore[attr-defined]
    loaded = type(model).from_pretrained(folder)  # type: ignore[attr-defined]
    torch.testing.assert_close(outputs(loaded), expected, rtol=1e-5, atol=1e-5)
    loaded.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again/model.safetensors")
    assert set(again) == set(stored) and all(torch.equal(again[n], stored[n]) for n in stored)
    torch.testing.assert_close(outputs(type(model).from_pretrained(tmp_path / "again")), outputs(loaded))  # type: ignore[attr-defined]
    loaded.dequantize()
    torch.testing.assert_close(outputs(loaded), expected, rtol=1e-5, atol=1e-5)
    loaded.save_pretrained(tmp_path / "plain")
    torch.testing.assert_close(outputs(type(model).from_pretrained(tmp_path / "plain")), expected, rtol=1e-5, atol=1e-5)  # type: ignore[attr-defined]


def test_a_batch_in_half_precision_is_as_of_the_plain_encoder(tmp_path: Path) -> None:
    """T5 keeps one layer in float32 when the rest is float16, and brings the input there; so must its codes."""
    torch.manual_seed(1)
    folder, _ = packed(t5(), tmp_path, 4)
    for dtype in (torch.float16, torch.bfloat16):
        loaded = T5EncoderModel.from_pretrained(folder, dtype=dtype)
        found = outputs(loaded)
        loaded.dequantize()
        assert loaded.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == (
            torch.float32 if dtype == torch.float16 else dtype
        )
        torch.testing.assert_close(found, outputs(loaded))
        cast = T5EncoderModel.from_pretrained(folder).to(dtype)
        assert cast.shared.scale.dtype == dtype and outputs(cast).dtype == dtype


def test_sizes_and_error_are_those_of_the_files(tmp_path: Path) -> None:
    """And those that a plan foretells from the config alone."""
    torch.manual_seed(1)
    model = t5()
    folder, context = packed(model, tmp_path, 4)
    stored = load_file(folder / "model.safetensors")
    plain = load_file(tmp_path / "model/text_encoder/model.safetensors")
    (encoder,) = packed_encoders(context)
    codes = {n for n, t in stored.items() if t.dtype in (torch.int8, torch.uint8)}
    scales = {n for n in stored if n.endswith(".scale")}
    in_codes = sum(plain[f"{n.removesuffix('.scale')}.weight"].numel() for n in scales)
    numbers = sum(t.numel() for t in plain.values())
    assert (encoder.name, encoder.kind, encoder.left) == ("text_encoder", "T5EncoderModel", ())
    assert (encoder.numbers, encoder.numbers_in_codes, encoder.bytes_bf16) == (numbers, in_codes, 2 * numbers)
    assert encoder.bytes == sum(stored[n].nbytes for n in codes | scales) + 2 * (numbers - in_codes)
    model = T5EncoderModel.from_pretrained(folder)
    model.dequantize()
    values = {n: t for n, t in model.state_dict().items() if f"{n.removesuffix('.weight')}.scale" in scales}
    error = sum(float((values[n] - plain[n]).double().square().sum()) for n in values)
    whole = sum(float(plain[n].double().square().sum()) for n in values)
    assert encoder.weight_error == pytest.approx((error / whole) ** 0.5, rel=1e-5)
    (foretold,) = footprints(context.model.path)
    assert foretold.bytes[4] == encoder.bytes and foretold.bytes[16] == encoder.bytes_bf16
    assert foretold.numbers == numbers and foretold.bytes[4] < foretold.bytes[8] < foretold.bytes[16]


def test_many_shards_are_one_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    folder, _ = packed(t5(), tmp_path, 4)
    whole = load_file(folder / "model.safetensors")
    monkeypatch.setattr(encoders, "SHARD", 20_000)
    monkeypatch.setattr(text_encoder_worker, "AT_ONCE", 700)
    monkeypatch.setattr(text_layers, "ROWS_AT_ONCE", 700)
    torch.manual_seed(1)
    folder, context = packed(t5(), tmp_path / "more", 4)
    assert len(units_of(context)) > 3
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    parts = {name: load_file(folder / file)[name] for name, file in index["weight_map"].items()}
    assert set(parts) == set(whole) and all(torch.equal(parts[n], whole[n]) for n in whole)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    assert not (folder / "model.safetensors").exists()
    loaded = T5EncoderModel.from_pretrained(folder)
    found = outputs(loaded)
    loaded.dequantize()
    torch.testing.assert_close(found, outputs(loaded), rtol=1e-5, atol=1e-5)


def test_a_shared_weight_that_is_stored_twice_is_stored_once_and_one_that_differs_stays(tmp_path: Path) -> None:
    for place, change in ((tmp_path / "same", 0.0), (tmp_path / "other", 1.0)):
        torch.manual_seed(1)
        model = t5()
        pipeline_of(model, place / "model")
        file = place / "model/text_encoder/model.safetensors"
        tensors = load_file(file)
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"] + change
        save_file(tensors, file, metadata={"format": "pt"})
        found = stored_encoder(place / "model", "text_encoder", 4)
        linears = {n for n in tensors if "SelfAttention" in n or "DenseReluDense" in n} - {
            n for n in tensors if "relative_attention_bias" in n
        }
        if change:
            assert found.left == ("encoder.embed_tokens", "shared") and not found.dropped
            assert set(found.packed) == linears
        else:
            assert found.dropped == {"encoder.embed_tokens.weight"} and found.left == ()
            assert set(found.packed) == linears | {"shared.weight"}


def test_a_file_without_all_its_layers_is_refused(tmp_path: Path) -> None:
    folder, _ = packed(t5(), tmp_path, 4)
    stored = load_file(folder / "model.safetensors")
    del stored["shared.scale"]
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="hold 14 quantized layers, and its config makes 15; copy the folder again"):
        T5EncoderModel.from_pretrained(folder)


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    model = t5()
    with torch.no_grad():
        model.encoder.block[1].layer[0].SelfAttention.q.weight[0, 0] = torch.inf
    with pytest.raises(StageError, match=r"block\.1\.layer\.0\.SelfAttention\.q\.weight cannot be quantized: it holds"):
        packed(model, tmp_path, 4)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"format": 2}, "was written in format 2, this version reads 1; update adatsq-pipe"),
        ({"bits": 3}, "has bits 3 and unknown keys"),
        ({"rows": 1}, "unknown keys .'rows'.; update adatsq-pipe"),
    ],
)
def test_another_format_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AdatsqTextConfig(**config)
