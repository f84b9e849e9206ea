"""Settings of a process: threads on every device, reproducible kernels and whole float32 on a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from adatsq_pipe.stages.denoiser.device import settle


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process as it starts; afterwards its settings as they were."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    backends, deterministic = torch.backends, torch.utils.deterministic
    before = (
        torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory,
        backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, backends.cuda.cudnn_sdp_enabled(),
    )  # fmt: skip
    torch.use_deterministic_algorithms(False)
    deterministic.fill_uninitialized_memory = True
    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = True
    backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.set_num_threads(before[0])
    torch.use_deterministic_algorithms(before[1])
    deterministic.fill_uninitialized_memory = before[2]
    backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = before[3], before[4]
    backends.cuda.enable_cudnn_sdp(before[5])


def _settings() -> tuple[bool, ...]:
    """Reproducible; memory filled; TF32 in products and in convolutions; cuDNN's attention."""
    return (
        torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory,
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.cudnn_sdp_enabled(),
    )  # fmt: skip


def test_a_cpu_has_its_threads_and_nothing_else() -> None:
    before = _settings()
    settle(device="cpu", threads=2)
    assert torch.get_num_threads() == 2
    assert _settings() == before == (False, True, True, True, True)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_gives_the_same_bits_in_whole_float32(device: str) -> None:
    settle(device=device, threads=1)
    assert torch.get_num_threads() == 1
    assert _settings() == (True, False, False, False, False)
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_workspace_that_is_set_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    settle(device="cuda", threads=1)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
