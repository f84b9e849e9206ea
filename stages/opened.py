"""The process's open denoiser: one at a time, kept between stages that ask for the same."""

from __future__ import annotations

import functools
import json
from typing import Any

from adatsq_pipe.stages.denoiser import Denoiser
from adatsq_pipe.stages.device import settle


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
