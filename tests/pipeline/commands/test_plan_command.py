"""`plan`: what it prints of a bare config, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from adatsq_pipe.pipeline.commands.cli import main
from adatsq_pipe.pipeline.commands.plan import duration
from adatsq_pipe.pipeline.estimate.devices import DEVICES, device_of
from adatsq_pipe.pipeline.estimate.trace import Cost

CONFIG = {
    "_class_name": "DiTTransformer2DModel", "num_attention_heads": 4, "attention_head_dim": 32, "in_channels": 4,
    "out_channels": 8, "num_layers": 2, "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_zero", "norm_elementwise_affine": False,
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path / "config.json"


def _plan(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["plan", *map(str, arguments)], prog_name="adatsq-pipe")
    return done.exit_code, done.output


def test_a_bare_config_is_planned_on_named_devices(config: Path) -> None:
    code, said = _plan(config, "--gpus", 2, "--device", "H100", "--set", "compute.dtype=bfloat16")
    assert code == 0, said
    assert "64 x 64, 50 steps, guided and unguided halves in one call; latents 4 x 8 x 8" in said
    assert "2 x h100" in said and "assumed: there is only a transformer" in said
    code, said = _plan(config.parent, "--device", "rtx 4090", "--json")
    found = json.loads(said)
    assert [stage["stage"] for stage in found["stages"]][:3] == ["capture", "fisher", "hessian"]
    assert found["total"]["wall_seconds"] == sum(stage["wall_seconds"] for stage in found["stages"]) > 0
    assert found["device_memory"] == 24 * 10**9 and found["workers"] == 1
    layers = 2 * 7 + 2  # the first block's embedder runs twice in a call, and stays as it is
    assert found["layers"] == layers


def test_without_hardware_there_are_no_hours(config: Path) -> None:
    code, said = _plan(config)
    assert code == 0 and "no hours: name a --device" in said and "wall" not in said.splitlines()[6]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "h300"), "device 'h300' is not known; choose from h100, h200"),
        (("--gpus", "8"), "--gpus 8 says how many, not which: add --device NAME"),
        (("--device", "h100", "--measure"), "give one of them"),
        (("--set", "model.call.height=2"), "has no latents; raise model.call.height"),
        (("--set", "search.bugdet=4"), "did you mean 'budget'?"),
    ],
)
def test_refusals(arguments: tuple[str, ...], words: str, config: Path) -> None:
    code, said = _plan(config, *arguments)
    assert code == 2 and words in said and said.count("\n") == 1


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    code, said = _plan(tmp_path / "nowhere")
    assert code == 2 and "nowhere does not exist; MODEL is a pipeline folder" in said
    (tmp_path / "list.json").write_text("[1]")
    code, said = _plan(tmp_path / "list.json")
    assert code == 2 and "is not a model's config" in said
    (tmp_path / "other.json").write_text('{"_class_name": "Nothing"}')
    code, said = _plan(tmp_path / "other.json")
    assert code == 2 and f"{tmp_path}/other.json is not a transformer's config: its _class_name 'Nothing' is no" in said
    (tmp_path / "empty.json").write_text("{}")
    code, said = _plan(tmp_path / "empty.json")
    assert code == 2 and "it has no _class_name" in said and said.count("\n") == 1


def test_a_device_is_as_fast_as_its_slowest_part() -> None:
    device = DEVICES["h100"]
    assert device_of("NVIDIA H100") is device
    assert device.seconds(Cost(flops={"half": 989e12 * 0.77})) == pytest.approx(1.0)
    assert device.seconds(Cost(flops={"float64": 67e12 * 0.77}, traffic=0.9 * 3.35e12)) == pytest.approx(2.0)
    assert device.seconds(Cost(kernels=1e6)) == pytest.approx(6.0)
    assert device.seconds(Cost(), link=64e9 * 0.4) == pytest.approx(1.0)


def test_times_are_in_the_unit_that_suits() -> None:
    assert [duration(s) for s in (0.26, 59.0, 200.0, 7200.0)] == ["0.3 s", "59 s", "3.3 min", "2.0 h"]
