"""A device that this machine does not have is refused in one line, before Ray or any unit is started."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from adatsq_pipe.pipeline import devices, quantize, runner
from adatsq_pipe.pipeline.commands.cli import main
from adatsq_pipe.pipeline.config import RunConfig, load
from adatsq_pipe.pipeline.devices import check_device
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.denoiser.device import require, unavailable
from adatsq_pipe.storage.rundir import RunDir


def _gpus(monkeypatch: pytest.MonkeyPatch, count: int, *, built: bool = True) -> None:
    """From now on this machine has so many GPUs, and a torch that may be built for them."""
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: built and count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count if built else 0)


def _config(device: str, *sets: str) -> RunConfig:
    return load(preset=None, file=None, sets=[f"compute.device={device}", *sets], model=None, previous=None)


@pytest.mark.parametrize(
    ("device", "count", "built", "why"),
    [
        ("cpu", 0, False, ""),
        ("cuda", 0, False, "this torch is built without CUDA"),
        ("cuda", 0, True, "torch finds no GPU here"),
        ("cuda", 1, True, ""),
        ("cuda:0", 1, True, ""),
        ("cuda:1", 1, True, "there are 1 GPUs here, counted from 0"),
        ("cuda:7", 8, True, ""),
    ],
)
def test_a_process_says_why_it_cannot_use_a_device(
    device: str, count: int, built: bool, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _gpus(monkeypatch, count, built=built)
    assert unavailable(device) == why
    if why:
        with pytest.raises(StageError, match=f"compute.device = {device}, but {why}") as caught:
            require(device)
        assert not caught.value.retryable, "another try would fail in the same way"
    else:
        require(device)


@pytest.mark.parametrize(
    ("device", "count", "sets", "words"),
    [
        ("cuda", 0, [], "compute.device = cuda, but torch finds no GPU here; set compute.device=cpu"),
        ("cuda", 0, ["cluster.executor=inline"], "torch finds no GPU here"),
        ("cuda:2", 2, ["cluster.executor=inline"], "compute.device = cuda:2, but there are 2 GPUs here"),
        ("cuda", 1, ["cluster.gpus=2", "cluster.gpus_per_worker=1"], "cluster.gpus = 2 needs cuda:1, but there are 1"),
        ("cuda:1", 4, ["cluster.gpus=4", "cluster.gpus_per_worker=1"], "a worker sees only the 1 of its own"),
        ("cuda:1", 4, ["cluster.gpus=4", "cluster.gpus_per_worker=auto"], "set compute.device=cuda"),
    ],
)
def test_a_device_that_workers_cannot_have_is_refused(
    device: str, count: int, sets: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _gpus(monkeypatch, count)
    with pytest.raises(ConfigError) as caught:
        check_device(_config(device, *sets))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("device", "count", "sets"),
    [
        ("cpu", 0, ["cluster.gpus=4", "cluster.gpus_per_worker=1"]),
        ("cuda", 0, ["cluster.address=auto"]),
        ("cuda", 0, ["cluster.address='ray://head:10001'", "cluster.gpus_per_worker=0.5"]),
        ("cuda", 2, ["cluster.gpus=2", "cluster.gpus_per_worker=0.25"]),
        ("cuda:1", 2, ["cluster.gpus=2", "cluster.gpus_per_worker=2"]),
        ("cuda:1", 2, ["cluster.executor=inline", "cluster.gpus_per_worker=0.5"]),
    ],
)
def test_a_device_that_workers_can_have_is_taken(
    device: str, count: int, sets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _gpus(monkeypatch, count)
    monkeypatch.setattr(devices, "cluster_gpus", lambda address: 1)
    check_device(_config(device, *sets))


@pytest.mark.parametrize("command", ["run", "compare"])
def test_a_new_run_on_a_missing_gpu_writes_nothing(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _gpus(monkeypatch, 0)
    done = CliRunner().invoke(main, [command, "--run-dir", str(tmp_path / "run"), "--set", "compute.device=cuda"])
    assert done.exit_code == 2 and done.output.startswith("error: compute.device = cuda, but torch finds no GPU here")
    assert done.output.count("\n") == 1 and not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="torch finds no GPU here"):
        quantize("scenes/flux-dev", tmp_path / "run", compute={"device": "cuda"})
    assert not (tmp_path / "run").exists()


def test_a_run_that_stands_asks_for_the_gpu_before_it_starts_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished one needs none: it says that there is nothing to do."""
    _gpus(monkeypatch, 0)
    monkeypatch.setattr(runner.loopback, "bind", lambda: pytest.fail("Ray starts"))
    with pytest.raises(ConfigError, match="torch finds no GPU here"):
        runner.Executors(_config("cuda"), RunDir(tmp_path)).get()


@pytest.mark.parametrize("device", ["gpu", "mps", "xla", "meta", "cuda:", "CUDA", "", "cuda:x", "cuda:٣"])
def test_sample_refuses_a_device_name_that_is_none(device: str, tmp_path: Path) -> None:
    out = str(tmp_path / "x.png")
    done = CliRunner().invoke(main, ["sample", "--prompt", "a red circle", "--out", out, "--device", device])
    assert done.exit_code == 2
    assert done.output == f"error: --device {device!r} is none; it must be auto, cpu, cuda or cuda:N\n"


def test_sample_and_inspect_refuse_a_gpu_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _gpus(monkeypatch, 0)
    out = str(tmp_path / "x.png")
    for arguments, instead in (
        (["sample", "--prompt", "a red circle", "--out", out, "--device", "cuda"], "use --device cpu"),
        (["inspect", "--set", "compute.device=cuda"], "add --no-call or set compute.device=cpu"),
    ):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 2 and done.output.count("\n") == 1, done.output
        assert f"cuda, but torch finds no GPU here; {instead}, or run where there is one" in done.output


def test_a_cpu_asks_torch_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "check_here", lambda *_: pytest.fail("torch is imported"))
    check_device(_config("cpu"))
