"""How many GPUs there are for torch on this machine, asked without importing torch where there is none."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_ROCM = Path("/dev/kfd")
"""There where the driver of AMD's GPUs is loaded."""


def visible_gpus() -> int:
    """GPUs that torch can use in this process: those that CUDA_VISIBLE_DEVICES leaves, 0 for a torch without CUDA.

    Everything that asks whether a GPU is there asks here.
    """
    if "torch" not in sys.modules and not _has_driver():
        return 0
    import torch  # slow to import, and of no use where no driver is

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _has_driver() -> bool:
    if _ROCM.exists():
        return True
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
