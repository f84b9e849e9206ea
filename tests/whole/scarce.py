"""The command line on a machine with little memory: `python -m tests.whole.scarce N ...` fits N samples into a forward.

Above that the denoiser raises what torch raises on a full GPU.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

from adatsq_pipe.pipeline.commands.cli import main

fit = int(sys.argv.pop(1))
forward = FluxTransformer2DModel.forward


@functools.wraps(forward)
def scarce(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    if len(hidden_states) > fit:
        raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(hidden_states)}.00 GiB.")
    return forward(self, hidden_states, *args, **kwargs)


FluxTransformer2DModel.forward = scarce
main()
