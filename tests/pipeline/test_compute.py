"""What `auto` stands for in [compute], and how many GPUs workers have, on machines with any number of GPUs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from adatsq_pipe.cluster.resources import Resources
from adatsq_pipe.pipeline import devices, plan, runner
from adatsq_pipe.pipeline.commands.cli import main
from adatsq_pipe.pipeline.compute import kept_by
from adatsq_pipe.pipeline.config import RunConfig
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.request import load_config, load_to_run
from adatsq_pipe.stages.base import gpus
from adatsq_pipe.stages.base.settings import ComputeSettings
from adatsq_pipe.storage.checkpoint import stored_dtype
from adatsq_pipe.storage.rundir import RunDir


@pytest.fixture
def place(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def _gpus(monkeypatch: pytest.MonkeyPatch, here: int, cluster: int = 0) -> None:
    """From now on so many GPUs are visible here, and so many are on the cluster."""
    monkeypatch.setattr(gpus, "visible_gpus", lambda: here)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(devices, "cluster_gpus", lambda address: cluster)


def _to_run(place: RunDir, *sets: str, model: str | None = None) -> RunConfig:
    return load_to_run(place, model, None, None, sets)


def _began(place: RunDir, device: str, dtype: str) -> None:
    """Let the run directory have a capture on that device."""
    place.create()
    compute = {"device": device, "dtype": dtype, "threads": 1}
    place.record_identity("capture", "f" * 64, {"stage": "capture", "reads": {"compute": compute}})


def _workers(config: RunConfig) -> int:
    cluster = config.cluster
    assert cluster.gpus_per_worker != "auto"
    options = cluster.model_dump(exclude={"executor", "gpu_memory"})
    return Resources(**options).local_workers


LOCAL_CASES = [
    (0, (), "cpu", "float32", 0, 0),
    (1, (), "cuda", "bfloat16", 1, 1),
    (8, (), "cuda", "bfloat16", 8, 1),
    (8, ("compute.device=cpu",), "cpu", "float32", 0, 0),
    (1, ("compute.device=cuda",), "cuda", "bfloat16", 1, 1),
    (1, ("compute.device=cuda", "compute.dtype=float32"), "cuda", "float32", 1, 1),
    (0, ("compute.dtype=bfloat16",), "cpu", "bfloat16", 0, 0),
    (8, ("cluster.gpus=2",), "cuda", "bfloat16", 2, 1),
    (2, ("cluster.workers=6",), "cuda", "bfloat16", 2, 0.3333),
    (8, ("cluster.workers=2",), "cuda", "bfloat16", 8, 1),
    (2, ("cluster.gpus_per_worker=0.25",), "cuda", "bfloat16", 2, 0.25),
    (4, ("cluster.executor=inline",), "cuda", "bfloat16", 0, 0),
]


@pytest.mark.parametrize(("count", "sets", "device", "dtype", "shared", "share"), LOCAL_CASES)
def test_a_run_on_this_machine_takes_the_gpus_that_are_there(
    count: int, sets: tuple[str, ...], device: str, dtype: str, shared: float, share: float, place: RunDir,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The built-in model's weights are stored in bfloat16."""
    _gpus(monkeypatch, count)
    config = _to_run(place, *sets)
    compute = config.settings[ComputeSettings]
    assert (compute.device, compute.dtype) == (device, dtype)
    assert (config.cluster.gpus, config.cluster.gpus_per_worker) == (shared, share)
    assert "auto" not in json.dumps(plan.plan(config, place)[0][0].identity)
    devices.check_device(config)


@pytest.mark.parametrize(("count", "sets", "workers"), [(1, (), 1), (8, (), 8), (2, ("cluster.workers=6",), 6)])
def test_a_gpu_has_one_worker_unless_more_are_asked_for(
    count: int, sets: tuple[str, ...], workers: int, place: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    _gpus(monkeypatch, count)
    config = _to_run(place, *sets)
    assert _workers(config) == workers
    share = config.cluster.gpus_per_worker
    assert isinstance(share, float) and share * workers <= count, "Ray can place them all"


def test_ray_is_started_with_the_gpus_that_are_there(place: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    from adatsq_pipe.cluster import ray_executor  # imports Ray

    asked: list[Resources] = []
    monkeypatch.setattr(ray_executor, "RayExecutor", lambda resources, *rest: asked.append(resources))
    monkeypatch.setattr(runner.loopback, "bind", lambda: None)
    _gpus(monkeypatch, 3)
    runner.Executors(_to_run(place, "compute.device=cuda"), place).get()
    assert (asked[0].gpus, asked[0].gpus_per_worker, asked[0].local_workers) == (3, 1, 3)


@pytest.mark.parametrize(
    ("here", "cluster", "sets", "device", "share"),
    [
        (0, 4, (), "cuda", 1),
        (4, 0, (), "cpu", 0),
        (0, 4, ("compute.device=cpu",), "cpu", 0),
        (0, 4, ("compute.device=cuda", "cluster.gpus_per_worker=0.5"), "cuda", 0.5),
    ],
)
def test_a_run_on_a_cluster_takes_the_gpus_of_its_nodes(
    here: int, cluster: int, sets: tuple[str, ...], device: str, share: float, place: RunDir,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    _gpus(monkeypatch, here, cluster)
    config = _to_run(place, "cluster.address=auto", *sets)
    assert config.settings[ComputeSettings].device == device
    assert config.cluster.gpus_per_worker == share
    devices.check_device(config)


def test_cuda_on_a_cluster_without_gpus_is_refused_in_one_line(place: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    _gpus(monkeypatch, 4, cluster=0)
    command = ["run", "--run-dir", str(place.path), "--address", "auto", "--set", "compute.device=cuda"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 2 and done.output.count("\n") == 1 and not place.exists()
    assert done.output.startswith("error: compute.device = cuda, but the cluster at 'auto' has no GPU; set compute")
    waits = _to_run(place, "cluster.address=auto", "compute.device=cuda", "cluster.workers=2")
    devices.check_device(waits)


def _identified(place: RunDir, *sets: str) -> object:
    steps, _ = plan.plan(_to_run(place, *sets), place)
    return steps[0].identity["reads"]["compute"]  # type: ignore[index, call-overload]


def test_float32_on_a_cpu_alone_is_identified_by_what_multiplies_it(
    place: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captures of a GPU, and of bfloat16, that were made before are reused."""
    _gpus(monkeypatch, 1)
    for device, dtype in (("cuda", "float32"), ("cpu", "bfloat16")):
        found = _identified(place, f"compute.device={device}", f"compute.dtype={dtype}")
        assert found == {"device": device, "dtype": dtype, "threads": 1}
    assert _identified(place, "compute.device=cpu") == {
        "device": "cpu", "dtype": "float32", "threads": 1, "products": "oneDNN"
    }  # fmt: skip


def test_a_cpu_that_was_chosen_is_identified_as_one_that_was_named(
    place: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    _gpus(monkeypatch, 0)
    steps, _ = plan.plan(_to_run(place), place)
    named, _ = plan.plan(_to_run(place, "compute.device=cpu", "compute.dtype=float32"), place)
    assert [step.fingerprint for step in steps] == [step.fingerprint for step in named]
    _gpus(monkeypatch, 1)
    others, _ = plan.plan(_to_run(place), place)
    assert not {step.fingerprint for step in steps} & {step.fingerprint for step in others}


def test_a_run_that_began_on_a_cpu_stays_there_and_says_so(place: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    _began(place, "cpu", "float32")
    _gpus(monkeypatch, 2)
    config = _to_run(place)
    compute = config.settings[ComputeSettings]
    assert (compute.device, compute.dtype, config.cluster.gpus) == ("cpu", "float32", 0)
    assert devices.line(config) == (
        "this run began on a CPU and stays there, though there is a GPU; "
        "--set compute.device=cuda starts its stages again on it"
    )
    _gpus(monkeypatch, 0)
    assert devices.line(config) == ""


def test_a_run_that_began_on_a_gpu_is_refused_where_there_is_none(
    place: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    _began(place, "cuda", "float16")
    _gpus(monkeypatch, 0)
    shown = load_config(place, None, None, None, ())
    assert shown.settings[ComputeSettings].dtype == "float16", "`status` and `why` show it anywhere"
    with pytest.raises(ConfigError) as caught:
        devices.check_device(_to_run(place))
    assert str(caught.value) == (
        "this run began on cuda and stays there, but torch finds no GPU here; "
        "set compute.device=cpu, which starts its stages again, or run where there is one"
    )
    assert _to_run(place, "compute.device=cpu").settings[ComputeSettings].dtype == "float32"


def test_a_record_that_is_not_whole_decides_nothing(place: RunDir) -> None:
    assert kept_by(place) == {}
    _began(place, "toaster", "float32")
    assert kept_by(place) == {}


def test_a_run_on_gpus_says_on_what_and_why(place: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    _gpus(monkeypatch, 2)
    said = devices.line(_to_run(place))
    assert said == "computes on cuda in bfloat16 (2 GPUs found; the model's own), 1 GPU a worker"
    said = devices.line(_to_run(place, "compute.device=cuda:0", "compute.dtype=float32", "cluster.executor=inline"))
    assert said == "computes on cuda:0 in float32"


def test_why_and_the_settings_show_what_auto_stands_for(place: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    _gpus(monkeypatch, 0)
    place.create()
    done = CliRunner().invoke(main, ["why", str(place.path)])
    assert "compute   cpu (no GPU found), float32 (on a CPU)" in done.output.splitlines()
    _gpus(monkeypatch, 1)
    done = CliRunner().invoke(main, ["why", str(place.path), "--set", "compute.dtype=float32"])
    assert "compute   cuda (1 GPU found), float32" in done.output.splitlines()
    done = CliRunner().invoke(main, ["run", "--run-dir", str(place.path), "--show-config"])
    lines = done.output.splitlines()
    assert 'device = "cuda"  # auto: 1 GPU found' in lines and 'dtype = "bfloat16"  # auto: the model\'s own' in lines
    assert "gpus = 1.0  # it follows from other settings" in lines


@pytest.mark.parametrize(
    ("stored", "expected"),
    [(torch.float16, "float16"), (torch.float32, "float32"), (torch.float8_e4m3fn, "bfloat16"), (None, "bfloat16")],
)
def test_the_dtype_on_a_gpu_is_that_of_most_stored_numbers(
    stored: torch.dtype | None, expected: str, place: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model" / "transformer"
    folder.mkdir(parents=True)
    (folder.parent / "model_index.json").write_text('{"transformer": ["diffusers", "Transformer"]}')
    (folder / "config.json").write_text("{}")
    if stored is not None:
        tensors = {"a": torch.zeros(3, 5).to(stored), "b": torch.zeros(14, dtype=torch.bfloat16)}
        save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
        assert stored_dtype(folder.parent) == str(stored).removeprefix("torch.").replace("float8_e4m3fn", "f8_e4m3")
    _gpus(monkeypatch, 1)
    config = _to_run(place, model=str(folder.parent))
    assert config.settings[ComputeSettings].dtype == expected


def test_torch_is_not_imported_where_no_driver_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_has_driver", lambda: False)
    monkeypatch.delitem(sys.modules, "torch")
    assert gpus.visible_gpus() == 0 and "torch" not in sys.modules


def test_sample_takes_the_gpu_and_the_dtype_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adatsq_pipe.stages.denoiser import sample  # imports diffusers

    taken: dict[str, object] = {}

    def draw(folder: Path, prompts: tuple[str, ...], **options: object) -> None:
        taken.update(options)

    monkeypatch.setattr(sample, "draw", draw)
    monkeypatch.setattr(sample, "save", lambda *rest, **options: None)
    for count, sets, device, dtype in (
        (0, (), "cpu", "float32"),
        (1, (), "cuda", "bfloat16"),
        (1, ("--device", "cpu"), "cpu", "float32"),
        (1, ("--dtype", "float16"), "cuda", "float16"),
    ):
        _gpus(monkeypatch, count)
        command = ["sample", "--prompt", "a red circle", "--out", str(tmp_path / "x.png"), *sets]
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output
        assert (taken["device"], taken["dtype"]) == (device, dtype)
