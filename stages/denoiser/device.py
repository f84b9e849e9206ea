"""How a worker's and a trainer's process computes: threads, and on a GPU the same bits from one run to the next.

Without this a GPU's convolutions would multiply float32 in nineteen bits, and the backward pass of attention would sum
in whatever order its blocks end. Nor is cuDNN's attention taken: its backward pass in bfloat16 gives NaN for some
lengths (pytorch/pytorch#196678), and did here on an H100.
"""

from __future__ import annotations

import os


def settle(*, device: str, threads: int) -> None:
    """Before any work on `device`: torch's settings for this process. What has no reproducible way there warns."""
    import torch

    torch.set_num_threads(threads)
    if not device.startswith("cuda"):
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
