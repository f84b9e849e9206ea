"""torch's process-wide settings for workers and training: threads, and reproducible results on a GPU.

By default a GPU's convolutions multiply float32 in TF32 (nineteen bits), and the backward pass of attention sums in the
order in which its blocks end. cuDNN's attention is turned off because its backward pass in bfloat16 gives NaN for some
lengths (pytorch/pytorch#196678), as seen on an H100.
"""

from __future__ import annotations

import os
import socket

import torch

from adatsq_pipe.stages.base import gpus
from adatsq_pipe.stages.base.errors import StageError


def unavailable(device: str) -> str:
    """Why this process cannot compute on `device` (cpu, cuda or cuda:N); "" if it can."""
    if not device.startswith("cuda"):
        return ""
    if not torch.backends.cuda.is_built():
        return "this torch is built without CUDA"
    number, count = int(device.partition(":")[2] or 0), gpus.visible_gpus()
    if not count:
        return "torch finds no GPU here"
    return "" if number < count else f"there are {count} GPUs here, counted from 0"


def require(device: str) -> None:
    """Raise StageError, which is not tried again, if this process cannot compute on `device`."""
    if why := unavailable(device):
        raise StageError(
            f"compute.device = {device}, but {why} (worker on {socket.gethostname()}); give workers a share of a GPU "
            "with cluster.gpus_per_worker, or set compute.device=cpu"
        )


def settle(*, device: str, threads: int) -> None:
    """Configure torch for work on `device`, before any work. Operations without a deterministic version warn."""
    torch.set_num_threads(threads)
    if not device.startswith("cuda"):
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
