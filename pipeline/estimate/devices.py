"""Devices: what named accelerators can do, from their makers' data sheets, dense and without sparsity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.estimate.trace import HALF, Cost

PRODUCTS = 0.77
"""Share of the peak that matrix products reach: 760 of an H100's 989 tera-operations a second, measured with
bfloat16 linears of FLUX.1-dev (tests/bench/results/2026-11-26-gpu-step.md)."""
TRAFFIC = 0.9
"""Share of the memory's bandwidth that elementwise kernels reach. With both shares a call of FLUX.1-dev takes 184 ms
on an H100, where 183 were measured, and of its simulated W4A4 model 281 where 305 were."""
LINK = 0.4
"""Share of the link's bandwidth that copies out of pageable main memory reach."""
KERNEL = 6e-6
"""Seconds from one kernel's start to the next's, where kernels are too short to fill the device."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """Peaks of one accelerator: floating-point operations a second, bytes a second, bytes."""

    half: float
    """bfloat16 or float16 with float32 sums, dense."""
    float32: float
    """Outside of reduced-precision tensor cores, as torch multiplies by default."""
    float64: float
    bandwidth: float
    memory: int
    link: float
    """To main memory, one way."""

    def seconds(self, cost: Cost, link: float = 0.0) -> float:
        """How long a computation takes that also moves `link` bytes from main memory."""
        peaks = {HALF: self.half, "float32": self.float32, "float64": self.float64}
        products = sum(flops / (PRODUCTS * peaks[kind]) for kind, flops in cost.flops.items())
        computing = max(products + cost.traffic / (TRAFFIC * self.bandwidth), KERNEL * cost.kernels)
        return computing + link / (LINK * self.link)


def _gpu(half: float, float32: float, float64: float, bandwidth: float, gigabytes: int, link: float) -> Device:
    return Device(half=half, float32=float32, float64=float64, bandwidth=bandwidth, memory=gigabytes * 10**9, link=link)


DEVICES: Mapping[str, Device] = {
    # https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet (H100 SXM5, 80 GB)
    "h100": _gpu(989e12, 67e12, 67e12, 3.35e12, 80, 64e9),
    # https://nvdam.widen.net/s/nb5zzzsjdf/hpc-datasheet-sc23-h200-datasheet-3002446 (H200 SXM)
    "h200": _gpu(989e12, 67e12, 67e12, 4.8e12, 141, 64e9),
    # https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf
    "a100": _gpu(312e12, 19.5e12, 19.5e12, 2.039e12, 80, 32e9),
    "a100-40gb": _gpu(312e12, 19.5e12, 19.5e12, 1.555e12, 40, 32e9),
    # https://resources.nvidia.com/en-us-l40s/l40s-datasheet-28413
    "l40s": _gpu(362e12, 91.6e12, 1.43e12, 0.864e12, 48, 32e9),
    # https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf, appendix A
    "rtx4090": _gpu(165.2e12, 82.6e12, 1.29e12, 1.008e12, 24, 32e9),
    # https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf
    "rtx5090": _gpu(209.5e12, 104.8e12, 1.64e12, 1.792e12, 32, 64e9),
    # https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf
    "rtx3090": _gpu(71e12, 35.6e12, 0.556e12, 0.936e12, 24, 32e9),
}  # fmt: skip


def device_of(name: str) -> Device:
    """The device of that name, in any case, with or without spaces and dashes. Raises ConfigError."""
    plain = {_plain(known): device for known, device in DEVICES.items()}
    if _plain(name) not in plain:
        raise ConfigError(f"device {name!r} is not known; choose from {', '.join(DEVICES)}, or use --measure here")
    return plain[_plain(name)]


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum()).removeprefix("nvidia").removeprefix("geforce")
