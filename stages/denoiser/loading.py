"""The process's open denoiser: one at a time, kept between stages that ask for the same."""

from __future__ import annotations

import functools
import json
from typing import Any

from adatsq_pipe.stages.architecture.memory import plan_of, surveyed
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.micro_batch import MicroBatch
from adatsq_pipe.stages.base.settings import ComputeSettings, ModelSettings
from adatsq_pipe.stages.denoiser.denoiser import Denoiser
from adatsq_pipe.stages.denoiser.device import settle


@functools.lru_cache(maxsize=1)
def _open(folder: str, dtype: str, device: str, call: str, blockwise: bool) -> Denoiser:
    return Denoiser(folder, dtype=dtype, device=device, call=json.loads(call), blockwise=blockwise)


def open_denoiser(
    folder: str, *, dtype: str, device: str, threads: int, call: dict[str, Any], blockwise: bool
) -> Denoiser:
    """The process's denoiser for these settings; the last one stays open between stages."""
    settle(device=device, threads=threads)
    return _open(folder, dtype, device, json.dumps(call, sort_keys=True), blockwise)


def take_denoiser(
    folder: str, *, dtype: str, device: str, threads: int, call: dict[str, Any], blockwise: bool
) -> Denoiser:
    """A denoiser to be changed: it is not shared with later stages, and no second copy of the model is held."""
    taken = open_denoiser(folder, dtype=dtype, device=device, threads=threads, call=call, blockwise=blockwise)
    _open.cache_clear()
    return taken


def denoiser_of(
    context: Context, micro: MicroBatch | None = None, *, folder: str = "", to_change: bool = False
) -> Denoiser:
    """The run's full-precision model (or the one in `folder`), open here, for a worker with that micro-batch; its
    blocks take turns on the device where the memory plan has it so.

    `to_change` gives one that no later stage will be handed.
    """
    compute, model = context.settings[ComputeSettings], context.settings[ModelSettings]
    opener, plan = take_denoiser if to_change else open_denoiser, plan_of(context, surveyed(context))
    denoiser = opener(
        folder or str(context.model.path),
        dtype=compute.dtype,
        device=compute.device,
        threads=compute.threads,
        call=model.call,
        blockwise=plan is not None and plan.blockwise,
    )
    denoiser.micro = micro or MicroBatch()
    return denoiser
