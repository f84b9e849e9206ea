"""Whether a model and its activations fit on a worker's device, estimated before any work. Imports torch lazily.

Sizes of weights come from the headers of the model's files. Activations are estimated from the survey of a capture:
inputs and outputs of the linear layers, of one block in a forward pass, of all in a backward pass. Until there
is a survey, a quarter of the device is reserved for them. None of this changes a byte of a result.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from adatsq_pipe.stages.architecture.support import denoisers
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.settings import ComputeSettings, DataSettings
from adatsq_pipe.stages.base.survey import LayerInfo, Survey
from adatsq_pipe.storage.checkpoint import find_pipeline, stored_sizes
from adatsq_pipe.storage.fingerprint import Plain

FREE = 0.25
"""Share of the device that is reserved for activations while their size is unknown."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
UNKNOWN = "memory: no GPU on this machine; each worker measures its own (or set cluster.gpu_memory)"
STAGES = ("capture", "fisher", "search", "evaluate")
"""The stages that run the model."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Sizes in bytes, and how the model is placed because of them."""

    device: int
    """Memory of the device that a worker may use."""
    weights: int
    """All models of the pipeline."""
    largest: int
    """The largest repeated block."""
    stays: int
    """Weights outside the repeated blocks."""
    activations: int
    """Activations of a forward pass."""
    held: int
    """Further activations that a backward pass holds, unless blocks are checkpointed."""

    @property
    def blockwise(self) -> bool:
        """Whether blocks are offloaded: on the device only while they compute."""
        return self.weights + self.activations > self.device

    @property
    def recomputed(self) -> bool:
        """Whether a backward pass recomputes blocks (gradient checkpointing)."""
        return self.blockwise or self.weights + self.activations + self.held > self.device

    @property
    def needed(self) -> int:
        """The most bytes on the device at any time."""
        weights = self.stays + self.largest if self.blockwise else self.weights
        return weights + self.activations

    def plain(self) -> dict[str, Plain]:
        """As plain values, for the run's log and reports."""
        return {**asdict(self), "blockwise": self.blockwise, "recomputed": self.recomputed, "needed": self.needed}

    def text(self) -> str:
        """The plan in one line."""
        if not self.blockwise:
            again = "; the Fisher stage computes blocks again in its backward pass" if self.recomputed else ""
            return f"memory: {shown(self.weights)} of weights fit in {shown(self.device)} of the device{again}"
        least = "; that still does not fit: lower data.batch" if self.needed > self.device else ""
        return (
            f"memory: {shown(self.weights)} of weights and {shown(self.activations)} of activations are more than the "
            f"{shown(self.device)} of the device: blocks take turns on it, which needs {shown(self.needed)}{least}"
        )


def shown(size: int) -> str:
    """Bytes as text with a unit, to three digits."""
    unit, name = next((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")) if size >= u or u == 1)
    return f"{size / unit:.3g} {name}"


def device_bytes(device: str, gigabytes: float, share: float) -> int | None:
    """Bytes that a worker may use of `device`: its share of `gigabytes` (10^9 bytes), or of the whole GPU if that is 0.
    None for a CPU, whose memory holds the model anyway, and on a machine without a GPU."""
    if gigabytes:
        return int(share * gigabytes * 1e9)
    return int(share * gpu_memory(device)) or None if device.startswith("cuda") else None


def gpu_memory(device: str = "cuda") -> int:
    """Bytes of memory of this machine's GPU `device`; 0 if it has none."""
    import torch  # a run that finds nothing to do needs none

    if not torch.cuda.is_available():
        return 0
    return int(torch.cuda.get_device_properties(torch.device(device)).total_memory)


def plan(
    sizes: Mapping[str, Mapping[str, int]],
    *,
    denoising: Sequence[str],
    device: int,
    dtype: str,
    rows: Sequence[LayerInfo] = (),
    samples: int = 1,
) -> MemoryPlan:
    """Of numbers of parameters by component and tensor; `rows` is a survey's, of `samples` samples in a call."""
    size, whole = BYTES[dtype], sum(sum(tensors.values()) for tensors in sizes.values())
    blocks: dict[str, int] = {}
    for component, tensors in sizes.items():
        for name, numbers in tensors.items():
            if block := _block(name, outermost=component in denoising):
                blocks[f"{component}/{block}"] = blocks.get(f"{component}/{block}", 0) + numbers
    held = [size * samples * of for of in by_block(rows).values()]
    known = bool(held) and all(row.macs is not None for row in rows)
    return MemoryPlan(
        device=device,
        weights=size * whole,
        largest=size * max(blocks.values(), default=0),
        stays=size * (whole - sum(blocks.values())),
        activations=max(held) if known else int(FREE * device),
        held=sum(held) - max(held) if known else 0,
    )


def _block(name: str, *, outermost: bool = False) -> str:
    """The repeated block that holds the tensor or layer of that name; "" if none does."""
    match = re.match(r"(\w+\.\d+)\." if outermost else r"((?:[A-Za-z_]\w*\.)*?\w+\.\d+)\.", name)
    return match[1] if match else ""


def by_block(rows: Sequence[LayerInfo]) -> dict[str, int]:
    """Numbers in the inputs (shared ones once) and outputs of the linears of each block, for one sample."""
    numbers: dict[str, int] = {}
    for row in rows:
        tokens = (row.macs or 0) // (row.in_features * row.out_features)
        own = tokens * (row.out_features + (row.in_features if row.owns_input else 0))
        numbers[_block(row.name)] = numbers.get(_block(row.name), 0) + own
    return numbers


def plan_of(context: Context, survey: Survey | None) -> MemoryPlan | None:
    """The plan of a run's full-precision model, with its `survey` if that is done; None where it takes none."""
    compute, folder = context.settings[ComputeSettings], context.model.path
    device = device_bytes(compute.device, context.gpu_memory, context.device_share)
    if device is None:
        return None
    return plan(
        stored_sizes(folder),
        denoising=denoisers(find_pipeline(folder)),
        device=device,
        dtype=compute.dtype,
        rows=survey.layers if survey else (),
        samples=context.settings[DataSettings].batch,
    )


def surveyed(context: Context) -> Survey | None:
    """The capture's survey, if it is done already."""
    manifest = context.manifest("capture")
    return Survey.from_plain(manifest.read("survey").value) if manifest.done("survey") else None
