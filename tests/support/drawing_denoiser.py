"""A fake denoiser that draws: guided, with pictures of what it denoised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from adatsq_pipe.stages.denoiser.call import Trajectory
from adatsq_pipe.stages.denoiser.conditions import Conditions
from tests.support.two_layer_denoiser import TwoLayerDenoiser


def squares(conditions: Conditions, latents: Tensor) -> Tensor:
    """Pictures [samples, 10, 10, 3] of the latents' first 75 numbers, in [0, 1]; a number is 2 x 2 pixels."""
    small = torch.sigmoid(latents.flatten(1)[:, :75]).reshape(-1, 5, 5, 3)
    return small.repeat_interleave(2, 1).repeat_interleave(2, 2)


class Drawing(TwoLayerDenoiser):
    """Guided: two calls at every step. It draws what `paint` makes of the latents."""

    def __init__(self, paint: Callable[[Conditions, Tensor], Tensor] = squares) -> None:
        super().__init__(guided=True)
        self.paint, self.pipe = paint, object()

    def record(self, conditions: Conditions, *, decode: bool = False, see: Any = None, keep: bool = True) -> Trajectory:
        assert keep is not decode, "draws need no outputs"
        run = super().record(conditions, see=see)
        return replace(run, pictures=self.paint(conditions, run.latents)) if decode else run

    def followed(self, conditions: Conditions) -> tuple[list[Tensor], Tensor]:
        """Latents before every step, and the last."""
        states: dict[int, Tensor] = {}
        run = super().record(conditions, see=lambda j, call: states.setdefault(call.step, call.args[0]))
        return list(states.values()), run.latents
