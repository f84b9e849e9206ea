"""Bad input: one clear line, the right exit code, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PATIENCE
from tests.whole import harness

pytestmark = pytest.mark.run


@pytest.fixture(scope="module")
def captured(tiny_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has got as far as capture."""
    run = tmp_path_factory.mktemp("captured") / "run"
    done = harness.run(*harness.tiny(run, tiny_flux, "--stages", "capture"))
    assert done.returncode == 0, done.stderr
    return run


def _refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, (done.returncode, done.stderr)
    line = harness.last_line(done.stderr)
    assert line.startswith("error:") and "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in line, line


def test_a_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    _refused(harness.run("run", "--run-dir", str(tmp_path / "r"), "--model", str(tmp_path)), 2, "model_index.json")
    assert not (tmp_path / "r").exists()


def test_a_pipeline_without_a_transformer(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "X", "unet": ["diffusers", "UNet2DModel"]}))
    _refused(
        harness.run("run", "--run-dir", str(tmp_path / "r"), "--model", str(tmp_path)), 2, "no transformer", "unet"
    )


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("solve.dampin=0.1", ("dampin", "did you mean 'damping'")),
        ("serch.budget=3.5", ("serch", "did you mean 'search'")),
        ("search.budget=1.5", ("1.5", "the fewest are 2")),
        ("search.budget='low'", ("search.budget", "low")),
        ("recipe.method=awq", ("awq", "adatsq", "rtn")),
        ("search.candidates=[[0.5,0.2,0.2]]", ("search.candidates",)),
        ("search.candidates=[[1,-0.5]]", ("[1.0, -0.5]", "at least 0")),
        ("budget", ("table.key=value",)),
        ("model.path=scenes/flux-def", ("flux-def", "did you mean 'scenes/flux-dev'")),
        ("evaluate.prompts=['a pink elephant']", ("evaluate.prompts", "no word 'pink'")),
    ],
)
def test_settings(setting: str, words: tuple[str, ...], tmp_path: Path) -> None:
    _refused(harness.run("run", "--run-dir", str(tmp_path / "r"), "--set", setting), 2, *words)


def test_stages(tmp_path: Path) -> None:
    _refused(harness.run("run", "--run-dir", str(tmp_path / "r"), "--stages", "sarch"), 2, "sarch", "search")
    _refused(harness.run("run", "--run-dir", str(tmp_path / "r"), "--stages", "solve..capture"), 2, "capture..solve")
    _refused(harness.run("run", "--run-dir", str(tmp_path / "r"), "--stages", "solve"), 2, "capture", "--stages")


def test_a_call_argument_the_pipeline_does_not_take(tmp_path: Path, tiny_flux: Path) -> None:
    done = harness.run(*harness.tiny(tmp_path / "r", tiny_flux, "--set", "model.call.steps=4"))
    _refused(done, 2, "FluxPipeline takes no steps", "num_inference_steps")


def test_a_call_that_the_pipeline_refuses_is_refused_before_any_unit_and_forgotten(
    captured: Path, tmp_path: Path, tiny_flux: Path
) -> None:
    done = harness.run(*harness.tiny(tmp_path / "r", tiny_flux, "--set", "model.call.sigmas=[]"))
    _refused(done, 2, "draws without one call of its denoiser", "nothing was started")
    assert not list((tmp_path / "r").rglob("units/*/*"))
    run = tmp_path / "run"
    shutil.copytree(captured, run, symlinks=True)
    before = (run / "config.toml").read_bytes()
    done = harness.run("run", "--run-dir", str(run), "--executor", "inline", "--set", "model.call.guidance_scale='a'")
    _refused(done, 2, "FluxPipeline fails as it is called here", "guidance_scale='a'")
    assert (run / "config.toml").read_bytes() == before


def test_another_format_and_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": 0}')
    _refused(harness.run("status", "--run-dir", str(tmp_path)), 1, "format 0")
    _refused(harness.run("run", "--run-dir", str(tmp_path)), 1, "format 0")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    _refused(harness.run("run", "--run-dir", str(other)), 2, "not empty")
    assert (other / "thesis.txt").read_text() == "mine"


def test_a_second_run_on_a_locked_directory(captured: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom adatsq_pipe.storage.rundir import RunDir\n"
        "with RunDir(Path(sys.argv[1])).lock():\n    print('held', flush=True)\n    time.sleep(3600)\n"
    )
    command = [sys.executable, "-c", script, str(captured)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            _refused(harness.run("run", "--run-dir", str(captured)), 1, f"process {holder.pid}")
        finally:
            holder.kill()


def test_a_wrong_address(captured: Path) -> None:
    done = harness.run("run", "--run-dir", str(captured), "--executor", "ray", "--address", "127.0.0.1:1")
    _refused(done, 1, "127.0.0.1:1", "--address")


@pytest.mark.parametrize("damage", ["truncated chunk", "altered chunk", "truncated marker"])
def test_damage_is_named_and_done_again(damage: str, captured: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(captured, run, symlinks=True)
    folder = next(run.glob("capture/*/units/activations/000-000"))
    tensors = folder / "tensors.zarr.zip"
    marker = next(run.glob("capture/*/markers/activations/000-000.json"))
    whole = tensors.read_bytes()
    if damage == "truncated tensors":
        tensors.write_bytes(whole[:-4])
    elif damage == "altered tensors":
        tensors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        marker.write_text(marker.read_text()[:-20])
    found = harness.run("verify", "--run-dir", str(run))
    assert found.returncode == 1 and "activations/000-000" in found.stderr, found.stderr
    done = harness.run("run", "--run-dir", str(run), "--stages", "capture..hessian", "--executor", "inline")
    assert done.returncode == 0, done.stderr
    assert "activations/000-000" in done.stderr and "again" in done.stderr, done.stderr
    assert tensors.read_bytes() == whole
    assert harness.run("verify", "--run-dir", str(run)).returncode == 0


def test_what_verify_found_is_done_again_where_no_stage_reads_it(captured: Path, tmp_path: Path) -> None:
    """A byte of the same size: a plan sees nothing, until `verify` has looked."""
    run = tmp_path / "run"
    shutil.copytree(captured, run, symlinks=True)
    tensors = next(run.glob("capture/*/units/trajectory/000/tensors.zarr.zip"))
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "damaged" not in harness.run("status", "--run-dir", str(run)).stdout
    found = harness.run("verify", "--run-dir", str(run))
    assert found.returncode == 1 and "trajectory/000" in found.stderr, found.stderr
    assert "capture   damaged" in harness.run("status", "--run-dir", str(run)).stdout
    done = harness.run("run", "--run-dir", str(run), "--stages", "capture", "--executor", "inline")
    assert done.returncode == 0 and tensors.read_bytes() == whole, done.stderr
    assert harness.run("verify", "--run-dir", str(run)).returncode == 0


def test_nan_names_layer_and_timestep(tiny_flux: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(tiny_flux, model)
    path = model / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["transformer_blocks.0.ff.net.0.proj.bias"][3] = float("inf")
    save_file(weights, path, metadata={"format": "pt"})
    done = harness.run(*harness.tiny(tmp_path / "r", model))
    _refused(done, 1, "NaN or infinity", "transformer_blocks.0.ff.net.2", "step 0", "timestep")


def test_a_full_disk(tiny_flux: Path, tmp_path: Path) -> None:
    """A file-size limit stands in for the full disk: the write fails in the middle of a unit all the same."""
    arguments = ["adatsq_pipe.pipeline.commands.cli", *harness.tiny(tmp_path / "r", tiny_flux)]
    script = (
        "import resource, signal, runpy, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30000, resource.RLIM_INFINITY))\n"
        "sys.argv = sys.argv[1:]\nrunpy.run_module('adatsq_pipe.pipeline.commands.cli', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=PATIENCE,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, cwd=harness.ROOT,
    )  # fmt: skip
    _refused(done, 1, "disk is full", "run again")
    again = harness.run(*harness.tiny(tmp_path / "r", tiny_flux, "--stages", "capture"))
    assert again.returncode == 0, again.stderr
    assert harness.run("verify", "--run-dir", str(tmp_path / "r")).returncode == 0


def test_status_reads_files_alone(captured: Path) -> None:
    rows = json.loads(harness.run("status", "--run-dir", str(captured), "--json").stdout)
    assert [row["state"] for row in rows][:2] == ["done", "missing"]
    assert rows[0]["units"] == rows[0]["expected"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--prompt", "a pink elephant", "--out", "x.png"), 2, ("no word 'pink'",)),
        (("scenes/flux-def", "--prompt", "a circle", "--out", "x.png"), 2, ("did you mean 'scenes/flux-dev'",)),
        (("--prompt", "a circle", "--out", "x.mov3"), 2, (".mov3", "use .png")),
        (("--prompt", "a circle", "--out", "/nowhere/x.png"), 2, ("/nowhere", "create it first")),
        (("/nowhere", "--prompt", "a circle", "--out", "x.png"), 2, ("/nowhere is not a folder",)),
    ],
)
def test_sample(arguments: tuple[str, ...], code: int, words: tuple[str, ...]) -> None:
    _refused(harness.run("sample", *arguments), code, *words)
    assert not (harness.ROOT / "x.png").exists()


def test_a_damaged_weight_file_is_named(tmp_path: Path) -> None:
    from adatsq_pipe.pipeline.config import model_folder

    model = tmp_path / "model"
    shutil.copytree(model_folder("scenes/flux-dev"), model)
    weights = model / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    _refused(harness.run("sample", str(model), "--prompt", "a circle", "--out", str(tmp_path / "x.png")), 1, str(model))


def test_a_recipe_the_model_cannot_take_is_refused_before_any_work(tiny_flux: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = harness.run(*harness.tiny(run, tiny_flux, "--set", "recipe.method='svdquant'"))
    assert done.returncode == 2
    assert "weight_group 64 does not divide the input width 32" in done.stderr and "recipe.group_fit" in done.stderr
    assert not run.exists()
