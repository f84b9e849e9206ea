"""Every export, loaded by whom it is for: stock diffusers, auto-round, a process without this package."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from diffusers import DiffusionPipeline

import adatsq_pipe.stages.runtime  # noqa: F401
from adatsq_pipe.pipeline.commands.cli import main
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.export.formats import _formats, self_contained, step_policy
from adatsq_pipe.stages.runtime.policy_hook import remove_policy_hook
from adatsq_pipe.stages.text.packed_folder import packed_names, write_encoder
from adatsq_pipe.stages.text.text_encoder import units_of
from adatsq_pipe.stages.text.text_encoder_worker import RoundEncoders
from adatsq_pipe.storage.files import link_or_copy
from tests.conftest import FAMILIES, PATIENCE
from tests.stages.runtime.folders import quantize
from tests.support.made_store import make_store

STEPS = [1.0, 0.5]


@pytest.fixture(scope="module", params=FAMILIES)
def plain(
    request: pytest.FixtureRequest, family: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A family's tiny pipeline, quantized without a rotation."""
    name: str = request.param
    return quantize(family(name), tmp_path_factory.mktemp("plain") / name, STEPS, block=1)


@pytest.fixture(scope="module")
def rotated(family: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize(family("flux"), tmp_path_factory.mktemp("rotated") / "flux", STEPS)


def draw(pipe: Any, folder: Path) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    asked: dict[str, Any] = {"class_labels": [3]} if folder.name == "dit" else {"prompt": "a red circle"}
    call = json.loads((folder / "sampling.json").read_text())["call"]
    return torch.as_tensor(pipe(**asked, **call, generator=torch.Generator().manual_seed(0), output_type="np")[0])


def weight_only(folder: Path) -> torch.Tensor:
    """What the quantized folder draws with activations left whole."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    remove_policy_hook(pipe.transformer)
    return draw(pipe, folder)


def test_dequantized_is_a_plain_folder(plain: Path, rotated: Path, tmp_path: Path) -> None:
    for source in (plain, rotated):
        out = tmp_path / source.parent.name
        _formats.export("dequantized", source, out)
        config = json.loads((out / "transformer" / "config.json").read_text())
        assert "quantization_config" not in config
        assert (draw(DiffusionPipeline.from_pretrained(out), source) - weight_only(source)).abs().mean() < 0.02


@pytest.mark.parametrize("widths", [(2,), (3,), (4,), (8,), (4, 3, 2, 8, 4)], ids=str)
def test_auto_round_reads_the_same_weights(
    widths: tuple[int, ...], family: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("auto_round", reason="auto-round is not installed: pip install auto-round")
    from diffusers import FluxTransformer2DModel

    group = 32 if widths == (4,) else 0
    source = quantize(family("flux"), tmp_path / "flux", STEPS, widths=widths, group=group, block=1)
    layers = {}
    for format in ("auto-round", "dequantized"):
        _formats.export(format, source, tmp_path / format)
        model = FluxTransformer2DModel.from_pretrained(tmp_path / format / "transformer", dtype=torch.bfloat16)
        layers[format] = dict(model.named_modules())
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    compared = 0
    for name, layer in layers["auto-round"].items():
        if type(layer).__name__ == "QuantLinear" and layer.infeatures == 32:
            got, wanted = layer(x).float(), layers["dequantized"][name](x).float()
            assert (got - wanted).norm() < 1e-2 * wanted.norm()
            compared += 1
    assert compared > 5


def test_auto_round_draws_the_same_in_every_family(plain: Path, tmp_path: Path) -> None:
    pytest.importorskip("auto_round", reason="auto-round is not installed: pip install auto-round")
    if plain.name == "wan":
        with pytest.raises(StageError, match="no layer is of a multiple of 32"):
            _formats.export("auto-round", plain, tmp_path / "out")
        return
    said = _formats.export("auto-round", plain, tmp_path / "out")
    assert ("left at 16 bits" in said) == (plain.name == "z-image")
    _formats.export("dequantized", plain, tmp_path / "wanted")
    drawn = [
        draw(DiffusionPipeline.from_pretrained(tmp_path / n, dtype=torch.bfloat16), plain) for n in ("out", "wanted")
    ]
    assert (drawn[0] - drawn[1]).abs().mean() < 0.02


def test_auto_round_refuses_what_it_has_no_place_for(
    rotated: Path, family: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=r"brought into first.*recipe.transform"):
        _formats.export("auto-round", rotated, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    five = quantize(family("flux"), tmp_path / "five", STEPS, widths=(4, 4, 5), block=1)
    with pytest.raises(StageError, match=r"has 5-bit weights; .* 2, 3, 4, 8.*recipe.weight_budget=0"):
        _formats.export("auto-round", five, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.run
def test_layers_of_different_widths_draw_the_same_dequantized_and_self_contained(
    family: Callable[[str], Path], tmp_path: Path
) -> None:
    source = quantize(family("flux"), tmp_path / "flux", STEPS, widths=(2, 3, 4, 5, 6, 8))
    for format in ("dequantized", "self-contained"):
        _formats.export(format, source, tmp_path / format)
    drawn = draw(DiffusionPipeline.from_pretrained(tmp_path / "dequantized"), source)
    assert (drawn - weight_only(source)).abs().mean() < 0.02
    own = DiffusionPipeline.from_pretrained(tmp_path / "self-contained", trust_remote_code=True)
    assert torch.equal(draw(own, source), draw(DiffusionPipeline.from_pretrained(source), source))


def test_self_contained_holds_every_module_of_ours_that_its_modules_import() -> None:
    """Each after those: the file is read from top to bottom."""
    before = set[str]()
    for module in (*self_contained.MODULES, *self_contained.TEXT_MODULES):
        spec = find_spec(f"adatsq_pipe.stages.{module}")
        assert spec is not None and spec.origin is not None
        needed = set(
            re.findall(r"^from adatsq_pipe\.stages\.([\w.]+) import", Path(spec.origin).read_text(), re.MULTILINE)
        )
        assert needed <= before | {"runtime.kernels"}, module
        before.add(module)


@pytest.mark.run
def test_self_contained_runs_where_this_package_is_not(rotated: Path, tmp_path: Path) -> None:
    _formats.export("self-contained", rotated, tmp_path / "out")
    call = json.loads((rotated / "sampling.json").read_text())["call"]
    script = (
        "import sys\nsys.modules['adatsq_pipe'] = None\nimport torch\nfrom diffusers import DiffusionPipeline\n"
        f"pipe = DiffusionPipeline.from_pretrained({str(tmp_path / 'out')!r}, trust_remote_code=True)\n"
        f"drawn = pipe('a red circle', **{call!r}, generator=torch.Generator().manual_seed(0), output_type='np')[0]\n"
        f"torch.save(torch.as_tensor(drawn), {str(tmp_path / 'drawn.pt')!r})\n"
    )
    home = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PATH": "/usr/bin", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE, env=home)
    assert done.returncode == 0, done.stderr
    wanted = draw(DiffusionPipeline.from_pretrained(rotated), rotated)
    assert torch.equal(torch.load(tmp_path / "drawn.pt", weights_only=True), wanted)


def test_self_contained_code_is_one_sound_file() -> None:
    text = self_contained.code("FluxPipeline")
    compile(text, "pipeline.py", "exec")
    assert "adatsq_pipe" not in text.replace("https://", "").split('"""', 2)[2].replace("adatsq-pipe", "")


def test_a_step_policy_says_first_and_last_steps_only() -> None:
    policy = step_policy.projected({"a": [16, 8, 8, 8, 16], "b": [16, 8, 8, 8, 16], "whole": [16] * 5})
    assert (policy["first_steps"], policy["last_steps"]) == ({"count": 1, "mode": "a16"}, {"count": 1, "mode": "a16"})
    assert policy["schema_version"] == 1 and policy["default_mode"] == "native"
    assert step_policy.projected({"a": [4, 4]})["first_steps"]["count"] == 0
    with pytest.raises(StageError, match=r"step 1 has layers at \[3, 8\] bits"):
        step_policy.projected({"a": [4, 3], "b": [4, 8]})
    with pytest.raises(StageError, match=r"from 1 to 3 have \[4, 8, 16\] bits"):
        step_policy.projected({"a": [16, 4, 16, 8, 16]})


def test_a_step_policy_travels_in_the_config(family: Callable[[str], Path], tmp_path: Path) -> None:
    source = quantize(family("flux"), tmp_path / "flux", [1.0])
    _formats.export("step-policy", source, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "transformer" / "config.json").read_text())
    assert config["quantization_config"]["runtime"]["diffusion_step_policy"]["type"] == "first_last_n"
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    pipe.transformer.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again["quantization_config"] == config["quantization_config"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{folder}", "--format", "gguf"], 2, "choose from auto-round, dequantized, self-contained, step-policy"),
        (["{empty}", "--format", "dequantized"], 2, "holds no run (it is empty)"),
        (["{full}", "--format", "dequantized"], 1, "is not quantized by adatsq-pipe"),
        (["{folder}", "--format", "dequantized", "--out", "{empty}"], 1, "is there already"),
        (["{folder}", "--format", "step-policy"], 1, "one native width there"),
        (["{folder}", "--format", "dequantized", "--out", "{folder}/x"], 2, "is inside the exported model"),
        (["{folder}", "--format", "dequantized"], 0, "plain bfloat16 weights"),
    ],
)
def test_the_command(
    arguments: list[str], code: int, words: str, family: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, empty = quantize(family("flux"), tmp_path / "flux", STEPS), tmp_path / "empty"
    empty.mkdir()
    given = [word.format(folder=folder, empty=empty, full=family("flux")) for word in arguments]
    done = CliRunner().invoke(main, ["export", *given])
    assert done.exit_code == code and words in done.output.replace("\n", " ")
    assert (tmp_path / "flux-dequantized").is_dir() == (code == 0)


@pytest.fixture(scope="module")
def with_encoders(family: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quantized Flux whose text encoders have their weights in codes of 4 bits."""
    place = tmp_path_factory.mktemp("encoders")
    folder, made = (
        quantize(family("flux"), place / "flux", STEPS, block=1),
        make_store(place, text_encoder={"bits": 4}, compute={"device": "cpu"}),
    )
    context = replace(
        made.context,
        fingerprints={**made.context.fingerprints, "text_encoder": "9" * 64},
        model=replace(made.context.model, path=family("flux")),
    )
    worker = RoundEncoders(context)
    for unit in units_of(context):
        worker(unit)
    for name in packed_names(context):
        shutil.rmtree(folder / name)
        write_encoder(context, name, folder, link_or_copy)
    return folder


def _encoded(folder: Path) -> torch.Tensor:
    pipe = DiffusionPipeline.from_pretrained(folder)
    with torch.no_grad():
        found = pipe.encode_prompt("a red circle", None, max_sequence_length=12)[:2]
    return torch.cat([part.flatten() for part in found])


def test_a_pipeline_with_codes_is_saved_cast_and_copied(with_encoders: Path, tmp_path: Path) -> None:
    expected, pipe = _encoded(with_encoders), DiffusionPipeline.from_pretrained(with_encoders)
    pipe.save_pretrained(tmp_path / "saved")
    assert torch.equal(_encoded(tmp_path / "saved"), expected)
    copied = copy.deepcopy(pipe.text_encoder_2)
    assert copied.shared.weight is copied.encoder.embed_tokens.weight, "one table, of which both are a view"
    with torch.no_grad():
        found = pipe.to(torch.bfloat16).encode_prompt("a red circle", None, max_sequence_length=12)[:2]
    rounded = torch.cat([part.flatten() for part in found])
    assert rounded.dtype == torch.bfloat16
    assert float((rounded.float() - expected).norm() / expected.norm()) < 0.02


def test_plain_formats_have_plain_text_encoders(with_encoders: Path, tmp_path: Path) -> None:
    """Their embeddings are those of the codes, but for the rounding of weights to bfloat16."""
    expected = _encoded(with_encoders)
    for format in ("dequantized", "auto-round"):
        if format == "auto-round" and find_spec("auto_round") is None:
            continue
        said = _formats.export(format, with_encoders, tmp_path / format)
        assert said.endswith("text_encoder, text_encoder_2 in plain bfloat16 too, with the weights of its codes")
        for name in ("text_encoder", "text_encoder_2"):
            assert "quantization_config" not in json.loads((tmp_path / format / name / "config.json").read_text())
    found = _encoded(tmp_path / "dequantized")
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.01


@pytest.mark.run
def test_other_formats_keep_the_codes(with_encoders: Path, tmp_path: Path) -> None:
    _formats.export("self-contained", with_encoders, tmp_path / "self-contained")
    text = (tmp_path / "self-contained" / "pipeline.py").read_text()
    assert "class AdatsqTextQuantizer" in text and text.count("\nregister_text()\n") == 1
    for name in ("text_encoder", "text_encoder_2"):
        file = f"{name}/model.safetensors"
        assert (tmp_path / "self-contained" / file).read_bytes() == (with_encoders / file).read_bytes()
    script = (
        "import sys; sys.modules['adatsq_pipe'] = None; import torch; from diffusers import DiffusionPipeline;"
        f"pipe = DiffusionPipeline.from_pretrained({str(tmp_path / 'self-contained')!r}, trust_remote_code=True);"
        "found = pipe.encode_prompt('a red circle', None, max_sequence_length=12)[:2];"
        f"torch.save(torch.cat([part.detach().flatten() for part in found]), {str(tmp_path / 'found.pt')!r})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "found.pt"), _encoded(with_encoders))
