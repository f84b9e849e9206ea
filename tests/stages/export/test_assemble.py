"""The assembled folder, read by hand: bits unpacked one by one, sizes added up, all else as the source has it."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adatsq_pipe.stages.allocation.points import AssembleSettings
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.run_settings import RunSettings
from adatsq_pipe.stages.base.settings import ModelSettings
from adatsq_pipe.stages.export import assemble_worker
from adatsq_pipe.stages.export.assemble import STAGE
from adatsq_pipe.stages.export.assemble_worker import Assemble
from adatsq_pipe.storage import weights
from adatsq_pipe.storage.model_files import copied_files, weight_files
from tests.support import slow_math
from tests.support.made_context import FIRST, MODULATION, SECOND, SHAPES
from tests.support.made_store import MadeStore, make_store

BITS = {FIRST: 3, SECOND: 4, MODULATION: 5}
FILE = "diffusion_pytorch_model.safetensors"


def _source(folder: Path, parts: dict[str, dict[str, Tensor]], **config: Any) -> None:
    """A pipeline folder of those denoisers, an autoencoder, a card, and what is not to be copied."""
    for part, stored in parts.items():
        (folder / part).mkdir(parents=True)
        save_file(stored, folder / part / FILE)
        said = {"_class_name": "TwoLayers", "width": 16, "quantization_config": {"old": 1}, **config}
        (folder / part / "config.json").write_text(json.dumps(said))
    (folder / "vae").mkdir()
    (folder / "vae" / FILE).write_bytes(b"autoencoder")
    (folder / "vae" / "config.json").write_text("{}")
    models = {part: ["diffusers", "TwoLayers"] for part in (*parts, "vae")}
    index = {"_class_name": "TwoLayersPipeline", **models}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "README.md").write_text("---\nlicense: mit\n---\nAn original.\n")
    (folder / "curve.png").write_bytes(b"png")


def _weights(prefix: str = "") -> dict[str, Tensor]:
    """A denoiser in bfloat16, its biases in float32: the three layers and a final projection."""
    random = torch.Generator().manual_seed(len(prefix))
    shapes = {**SHAPES, "proj_out": (16, 16)}
    stored = {f"{name}.weight": torch.randn(shape, generator=random).bfloat16() for name, shape in shapes.items()}
    return stored | {f"{name}.bias": torch.randn(o, generator=random) for name, (o, _) in shapes.items()}


def _write_layer(store: MadeStore, name: str, as_name: str, **parts: Tensor) -> dict[str, Tensor]:
    """A solved layer in groups of 8, every code of its bits among its codes."""
    (out, width), bits, random = SHAPES[name], BITS[name], torch.Generator().manual_seed(BITS[name])
    stored = {
        "codes": torch.randint(0, 2**bits, (out, width), generator=random, dtype=torch.uint8),
        "scale": torch.rand(out, width // 8, generator=random).bfloat16(),
        "zero": torch.randint(0, 2**bits, (out, width // 8), generator=random, dtype=torch.uint8),
        **parts,
    }
    spec = {"weight_bits": bits, "group": 8, "block": 1, "symmetric_activations": False}
    store.write_layer(as_name, stored, {**spec, **({"smoothed": True} if "smooth" in parts else {})})
    return stored


@pytest.fixture
def store(tmp_path: Path) -> MadeStore:
    store = make_store(tmp_path)
    store.write_survey()
    store.write_front()
    return store


def _assembled(store: MadeStore) -> tuple[dict[str, Any], Path]:
    Assemble(store.context)("model")
    marker, folder = store.context.read("assemble", "model")
    return marker.value, folder


def test_codes_policy_and_scales_are_those_of_the_solved_units(store: MadeStore) -> None:
    source = _weights()
    _source(Path(store.context.model.path), {"transformer": source})
    solved = {
        FIRST: _write_layer(store, FIRST, FIRST, smooth=torch.rand(16).bfloat16()),
        SECOND: _write_layer(store, SECOND, SECOND),
        MODULATION: _write_layer(store, MODULATION, MODULATION, bias=torch.linspace(-3, 3, 16)),
    }
    _, folder = _assembled(store)
    written = load_file(folder / "transformer" / FILE)
    expected = {"proj_out.weight", "proj_out.bias", f"{FIRST}.smooth"}
    for place, (name, stored) in enumerate(solved.items()):
        expected |= {f"{name}.{part}" for part in ("codes", "scale", "zero", "policy", "bias")}
        (out, width), bits = SHAPES[name], BITS[name]
        assert written[f"{name}.codes"].shape == (out, bits * width // 8)
        assert torch.equal(slow_math.unpacked(written[f"{name}.codes"], bits, width), stored["codes"].long())
        assert torch.equal(written[f"{name}.scale"], stored["scale"])
        assert torch.equal(written[f"{name}.zero"], stored["zero"])
        assert written[f"{name}.policy"].dtype == torch.uint8
        assert written[f"{name}.policy"].tolist() == [store.bits[step][place] for step in range(3)]
    assert set(written) == expected
    assert torch.equal(written[f"{FIRST}.smooth"], solved[FIRST]["smooth"])
    assert torch.equal(written[f"{MODULATION}.bias"], torch.linspace(-3, 3, 16))
    for name in ("proj_out.weight", "proj_out.bias", f"{FIRST}.bias", f"{SECOND}.bias"):
        assert written[name].dtype == source[name].dtype and torch.equal(written[name], source[name])


def test_a_picked_point_of_the_front_is_the_policy_of_the_folder_and_of_its_card(tmp_path: Path) -> None:
    store = make_store(tmp_path, recipe={"method": "endpoint"}, assemble={"mean_bits": 3.9})
    store.write_survey()
    own = [b for row in store.bits for b in row if b < 16]
    costs = {"mac_weighted_bits": 3.25, "predicted_error": 0.01, "rollout_error": None}
    store.write_front(
        [{"mean_bits": 5.0, "bits": own, **costs}, {"mean_bits": 3.5, "bits": [3, 4, 4, 3, 4, 3], **costs}]
    )
    _source(Path(store.context.model.path), {"transformer": _weights()})
    for name in SHAPES:
        _write_layer(store, name, name)
    value, folder = _assembled(store)
    written = load_file(folder / "transformer" / FILE)
    assert [written[f"{name}.policy"].tolist() for name in SHAPES] == [[3, 4, 4], [4, 3, 3], [16, 16, 16]]
    assert (
        "activations: 3.50 bits on average over timesteps and layers, 3.25 weighted"
        in (folder / "README.md").read_text()
    )
    assert value["policy_digest"] == sha256(repr(((3, 4, 16), (4, 3, 16), (4, 3, 16))).encode()).hexdigest()


def test_a_folded_bias_has_the_dtype_that_the_source_stores(store: MadeStore) -> None:
    source = {name: tensor.bfloat16() for name, tensor in _weights().items()}
    _source(Path(store.context.model.path), {"transformer": source})
    for name in SHAPES:
        _write_layer(store, name, name, bias=torch.full((SHAPES[name][0],), 1 / 3))
    written = load_file(_assembled(store)[1] / "transformer" / FILE)
    assert torch.equal(written[f"{FIRST}.bias"], torch.full((24,), 1 / 3).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_folded_bias_of_a_model_stored_in_8_bits_is_not_rounded_to_them(dtype: torch.dtype, store: MadeStore) -> None:
    source = {name: tensor.to(dtype) for name, tensor in _weights().items()}
    _source(Path(store.context.model.path), {"transformer": source})
    for name in SHAPES:
        more = {"bias": torch.full((SHAPES[name][0],), 1 / 3)} if name == FIRST else {}
        _write_layer(store, name, name, **more)
    written = load_file(_assembled(store)[1] / "transformer" / FILE)
    assert torch.equal(written[f"{FIRST}.bias"].float(), torch.full((24,), 1 / 3))
    for name in (f"{SECOND}.bias", "proj_out.weight"):
        assert written[name].dtype == dtype and torch.equal(written[name].float(), source[name].float())


def test_the_folder_is_the_sources_but_for_denoiser_and_card(store: MadeStore) -> None:
    model = Path(store.context.model.path)
    _source(model, {"transformer": _weights()})
    for name in SHAPES:
        _write_layer(store, name, name)
    value, folder = _assembled(store)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    assert (config["width"], config["_class_name"]) == (16, "TwoLayers")
    spec = {"group": 8, "block": 1, "symmetric_activations": False}
    assert config["quantization_config"] == {
        "quant_method": "adatsq",
        "format": 2,
        "timesteps": [1000.0, 700.0, 400.0],
        "layers": {name: {"weight_bits": BITS[name], **spec} for name in SHAPES},
    }
    assert (folder / "model_index.json").read_bytes() == (model / "model_index.json").read_bytes()
    assert (folder / "vae" / FILE).read_bytes() == b"autoencoder"
    assert not (folder / "curve.png").exists()
    assert (folder / "README.md").read_text().startswith("---\nbase_model: model\n")
    assert "license: mit" in (folder / "README.md").read_text()
    said = json.loads((folder / "sampling.json").read_text())
    assert said == {"call": {"num_inference_steps": 3}, "world": ""}
    assert value["policy_digest"] == sha256(repr(tuple(map(tuple, store.bits))).encode()).hexdigest()


def test_sizes_are_the_bytes_that_can_be_counted(store: MadeStore) -> None:
    source = _weights()
    _source(Path(store.context.model.path), {"transformer": source})
    for name in SHAPES:
        more = {"smooth": torch.ones(16).bfloat16()} if name == FIRST else {}
        _write_layer(store, name, name, **more, bias=torch.zeros(SHAPES[name][0]))
    value, folder = _assembled(store)
    written = load_file(folder / "transformer" / FILE)
    layers = 0
    for name, (out, width) in SHAPES.items():
        layers += out * width * BITS[name] // 8 + out * width // 8 * 2 + out * width // 8 + 3
    layers += 2 * 16
    counted = sum(
        tensor.numel() * tensor.element_size()
        for name, tensor in written.items()
        if name.startswith("blocks") and not name.endswith("bias")
    )
    numbers = 24 * 16 + 8 * 16 + 16 * 8
    rest = 2 * (16 * 16 + 16 + 24 + 8 + 16)
    assert layers == counted == value["layer_bytes"]
    assert value["layers"] == 3
    assert value["layer_bytes_bf16"] == 2 * numbers
    assert (
        value["transformer_bytes_bf16"] == 2 * sum(tensor.numel() for tensor in source.values()) == 2 * numbers + rest
    )
    assert value["transformer_bytes"] == layers + rest
    assert value["weight_bits"] == pytest.approx(8 * (layers - 3 * 3) / numbers)


def test_a_weight_that_the_source_does_not_store_is_refused(store: MadeStore) -> None:
    source = _weights()
    del source[f"{SECOND}.weight"]
    _source(Path(store.context.model.path), {"transformer": source})
    for name in SHAPES:
        _write_layer(store, name, name)
    with pytest.raises(StageError, match=rf"stores no tensor {SECOND}\.weight"):
        Assemble(store.context)("model")
    assert not store.manifest("assemble").done("model")


def test_leftovers_that_diffusers_ignores_are_not_assembled(store: MadeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    class Known(nn.Module):
        _keys_to_ignore_on_load_unexpected = ("^expected",)

        def __init__(self) -> None:
            super().__init__()
            self.proj_out = nn.Linear(16, 16)

    monkeypatch.setattr(assemble_worker, "on_meta", lambda config, where: Known())
    more = {name: torch.ones(1) for name in ("ema.decay", "proj_out.lora", "expected.x")}
    _source(Path(store.context.model.path), {"transformer": _weights() | more})
    for name in SHAPES:
        _write_layer(store, name, name)
    written = load_file(_assembled(store)[1] / "transformer" / FILE)
    assert not written.keys() & {"ema.decay", "proj_out.lora"}
    assert written.keys() >= {"expected.x", "proj_out.weight", "proj_out.bias", f"{FIRST}.bias", f"{FIRST}.codes"}


def test_of_two_denoisers_each_has_its_own_layers(tmp_path: Path) -> None:
    store = make_store(tmp_path, model={"call": {}})
    names = ["transformer.blocks.0.first", "transformer_2.blocks.0.second"]
    rows = [{**store.row(name.partition(".")[2]), "name": name, "part": name.partition(".")[0]} for name in names]
    store.write_survey(layers=rows, parts={"transformer": [0], "transformer_2": [1, 2]})
    store.bits = [[3, 16], [16, 4], [16, 8]]
    store.write_front()
    parts = {"transformer": _weights(), "transformer_2": _weights("second")}
    _source(Path(store.context.model.path), parts)
    solved = [_write_layer(store, name.partition(".")[2], name) for name in names]
    model = Path(store.context.model.path)
    for path in (*model.rglob("*"), model):
        path.chmod(0o555 if path.is_dir() else 0o444)
    value, folder = _assembled(store)
    assert all(path.stat().st_mode & 0o200 for path in (folder, *folder.rglob("*"))), "a read-only source is copied"
    one, two = (load_file(folder / part / FILE) for part in parts)
    assert torch.equal(slow_math.unpacked(one[f"{FIRST}.codes"], 3, 16), solved[0]["codes"].long())
    assert torch.equal(slow_math.unpacked(two[f"{SECOND}.codes"], 4, 16), solved[1]["codes"].long())
    assert one[f"{FIRST}.policy"].tolist() == [3, 16, 16] and two[f"{SECOND}.policy"].tolist() == [16, 4, 8]
    assert torch.equal(one[f"{SECOND}.weight"], parts["transformer"][f"{SECOND}.weight"])
    assert torch.equal(two[f"{FIRST}.weight"], parts["transformer_2"][f"{FIRST}.weight"])
    configs = [json.loads((folder / part / "config.json").read_text())["quantization_config"] for part in parts]
    assert [list(config["layers"]) for config in configs] == [[FIRST], [SECOND]]
    whole = 2 * sum(tensor.numel() for stored in parts.values() for tensor in stored.values())
    assert value["transformer_bytes_bf16"] == whole
    assert not (folder / "sampling.json").exists()


@pytest.mark.parametrize("parts", [("transformer",), ("transformer", "transformer_2")], ids=len)
def test_shards_hold_the_tensors_and_sizes_of_the_single_file(
    parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three packed layers and a projection in bfloat16 take about 2 KB: shards of 600 bytes are at least three."""
    found: list[tuple[dict[str, Any], dict[str, dict[str, bytes]], set[str]]] = []
    for limit in (weights.SHARD_BYTES, 600):
        monkeypatch.setattr(weights, "SHARD_BYTES", limit)
        store = make_store(tmp_path / str(limit))
        prefixes = {part: f"{part}." for part in parts} if len(parts) > 1 else {"transformer": ""}
        rows = [{**store.row(n), "name": p + n, "part": part} for part, p in prefixes.items() for n in SHAPES]
        survey = {"parts": {part: [i] for i, part in enumerate(parts)}} if len(parts) > 1 else {}
        store.bits = [[4] * len(rows) for _ in range(3)]
        store.write_survey(layers=rows, **survey)
        store.write_front()
        _source(Path(store.context.model.path), {part: _weights(prefix) for part, prefix in prefixes.items()})
        for prefix in prefixes.values():
            for name in SHAPES:
                _write_layer(store, name, prefix + name)
        value, folder = _assembled(store)
        read: dict[str, dict[str, bytes]] = {part: {} for part in parts}
        for path in weight_paths(folder, parts):
            read[path.parent.name] |= {
                n: t.contiguous().view(torch.uint8).numpy().tobytes() for n, t in load_file(path).items()
            }
        found.append((value, read, set(copied_files(folder))))
    (value, single, _), (sharded_value, sharded, copied) = found
    assert sharded_value == value and sharded == single
    for part in parts:
        index = json.loads((folder / part / f"{FILE}.index.json").read_text())
        files = set(index["weight_map"].values())
        assert set(index["weight_map"]) == set(single[part]) and len(files) >= 3
        assert copied >= {f"{part}/{name}" for name in (*files, f"{FILE}.index.json", "config.json")}
    marker = store.manifest("assemble").verify("model")
    assert copied <= set(marker.files), "the marker vouches for every shard"


def weight_paths(folder: Path, parts: tuple[str, ...]) -> list[Path]:
    """The files of tensors of the denoisers, as from_pretrained finds them."""
    return [path for part in parts for path in weight_files(folder, part)]


def test_a_family_says_where_its_timestep_is(store: MadeStore) -> None:
    from adatsq_pipe.stages.architecture.families._family import families

    name, family = next((name, family) for name, family in families().items() if family.timestep)
    _source(Path(store.context.model.path), {"transformer": _weights()}, _class_name=name)
    for layer in SHAPES:
        _write_layer(store, layer, layer)
    _, folder = _assembled(store)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    assert config["quantization_config"]["timestep"] == family.timestep


def test_the_folders_bytes_depend_on_the_call_and_the_world() -> None:
    settings = RunSettings([ModelSettings(call={"height": 8}, world="scenes", path="x"), AssembleSettings()])
    assert STAGE.reads(settings, "digest") == {"model": "digest", "call": {"height": 8}, "world": "scenes"}
