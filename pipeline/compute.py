"""The device and the dtype of a run where its settings leave them to what is there (`auto`).

They are put in place before anything is identified by them, so a run on a GPU and one on a CPU never share a unit. A
run directory keeps its own: what was begun on one kind of device goes on there, or says why it cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from adatsq_pipe.stages.base.settings import AUTO, DTYPES, ComputeSettings, is_device
from adatsq_pipe.storage.checkpoint import stored_dtype
from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.rundir import RunDir

ON_CPU = "float32"
"""CPUs multiply the 16-bit types no faster, most of them many times slower."""
ELSE = "bfloat16"
"""On a GPU, where the weights are not at hand or are stored in a type that nothing is computed in."""
KEPT = "as this run began"


@dataclass(frozen=True, kw_only=True)
class Basis:
    """Why the device and the dtype are what they are; "" where the settings name them."""

    device: str = ""
    dtype: str = ""

    @property
    def keeps_device(self) -> bool:
        """Whether the device is that of the run's earlier stages."""
        return self.device == KEPT


def chosen(
    asked: ComputeSettings, model: Path, kept: Mapping[str, object], gpus: Callable[[], int]
) -> tuple[ComputeSettings, Basis]:
    """The settings with a device and a dtype in the place of `auto`, and why these.

    `kept` is the table as the run directory recorded it last, {} if it has none; `gpus` counts the workers' GPUs, and
    is asked only if nothing else decides.
    """
    device, dtype, basis = asked.device, asked.dtype, Basis()
    if device == AUTO and kept:
        device, basis = str(kept["device"]), Basis(device=KEPT)
    elif device == AUTO:
        count = gpus()
        device = "cuda" if count else "cpu"
        basis = Basis(device=f"{count} GPU{'s' if count > 1 else ''} found" if count else "no GPU found")
    if dtype == AUTO:
        dtype, why = _dtype(device, model, kept)
        basis = Basis(device=basis.device, dtype=why)
    return asked.model_copy(update={"device": device, "dtype": dtype}), basis


def _dtype(device: str, model: Path, kept: Mapping[str, object]) -> tuple[str, str]:
    """The dtype on `device`, and why."""
    if device == "cpu":
        return ON_CPU, "on a CPU"
    if kept and str(kept["device"]).startswith("cuda"):
        return str(kept["dtype"]), KEPT
    try:
        own = stored_dtype(model)
    except (StorageError, OSError):
        return ELSE, "the weights cannot be read"
    if own in DTYPES:
        return own, "the model's own"
    return ELSE, f"the weights are stored in {own}" if own else "there are no weights to ask"


def kept_by(run: RunDir) -> Mapping[str, object]:
    """The table [compute] that the run directory recorded last; {} if it has none that is whole."""
    for identity in run.identities("capture") if run.exists() else ():
        reads = identity.get("reads")
        found = reads.get(ComputeSettings.table) if isinstance(reads, Mapping) else None
        if isinstance(found, Mapping) and is_device(str(found.get("device"))) and found.get("dtype") in DTYPES:
            return found
    return {}


def text(settings: ComputeSettings, basis: Basis) -> str:
    """The device and the dtype in one line, e.g. "cuda (1 GPU found), bfloat16 (the model's own)"."""
    parts = ((settings.device, basis.device), (settings.dtype, basis.dtype))
    return ", ".join(value + (f" ({why})" if why else "") for value, why in parts)
