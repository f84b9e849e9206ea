"""The process's open denoiser: one at a time, shared by consecutive workers that ask for the same model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adatsq_pipe.stages.architecture.memory import plan_of, surveyed
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.micro_batch import MicroBatch
from adatsq_pipe.stages.base.settings import ComputeSettings, ModelSettings
from adatsq_pipe.stages.denoiser.castable import kept_in_float32
from adatsq_pipe.stages.denoiser.denoiser import Denoiser
from adatsq_pipe.stages.denoiser.device import require, settle
from adatsq_pipe.storage.cast_copy import cast_copy, home_of
from adatsq_pipe.storage.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """Which pipeline to open, and how. Two requests that are equal are served by the same Denoiser."""

    folder: Path
    dtype: str
    device: str
    call: Mapping[str, object] = field(default_factory=dict)
    """Arguments of every call of the pipeline."""
    blockwise: bool = False
    """Whether blocks are on the device only while they compute."""
    cast_home: Path | None = None
    """Where the workers of this machine keep a copy of the weights in `dtype`, which they share; None: they do not."""


class ModelSlot:
    """Holds the Denoiser that was opened last, so that the next worker need not load the same model again."""

    def __init__(self) -> None:
        self._request: ModelRequest | None = None
        self._denoiser: Denoiser | None = None

    def open(self, request: ModelRequest) -> Denoiser:
        """The denoiser of an equal request if it is still here, else a new one.

        The one before is released first, so that the slot never holds two models.
        """
        if self._denoiser is None or self._request != request:
            self.clear()
            cast = None
            if request.cast_home is not None:
                kept = kept_in_float32(request.folder, request.dtype)
                cast = cast_copy(request.folder, request.cast_home, dtype=request.dtype, kept=kept)
            self._denoiser = Denoiser(
                str(request.folder),
                dtype=request.dtype,
                device=request.device,
                call=dict(request.call),
                blockwise=request.blockwise,
                cast=cast,
            )
            self._request = request
        return self._denoiser

    def take(self, request: ModelRequest) -> Denoiser:
        """A denoiser that its caller may change: the slot gives it up, so later requests load the model again."""
        denoiser = self.open(request)
        self.clear()
        return denoiser

    def clear(self) -> None:
        """Forget the denoiser."""
        self._request = self._denoiser = None


SLOT = ModelSlot()
"""The slot of this process."""


def denoiser_of(
    context: Context, micro: MicroBatch | None = None, *, folder: Path | None = None, to_change: bool = False
) -> Denoiser:
    """The run's full-precision model (or the one in `folder`) for a worker with that micro-batch limit.

    Blocks are offloaded if the memory plan says so. `to_change` gives a denoiser that no later worker shares. Raises
    what Denoiser raises.
    """
    compute, plan = context.settings[ComputeSettings], plan_of(context, surveyed(context))
    require(compute.device)
    settle(device=compute.device, threads=compute.threads)
    blockwise, run = plan is not None and plan.blockwise, RunDir.at(context.run)
    # Elsewhere the weights leave main memory, or nothing would remove the copies of other machines.
    shares = context.shares_host and (compute.device == "cpu" or blockwise) and run.remote is None
    request = ModelRequest(
        folder=folder or context.model.path,
        dtype=compute.dtype,
        device=compute.device,
        call=context.settings[ModelSettings].call,
        blockwise=blockwise,
        cast_home=home_of(run.path) if shares else None,
    )
    denoiser = SLOT.take(request) if to_change else SLOT.open(request)
    denoiser.micro = micro or MicroBatch()
    return denoiser
