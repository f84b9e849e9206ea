"""A stand-in for a pipeline's denoisers, its autoencoder and its scheduler while the pipeline's own loop runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adatsq_pipe.stages.base.micro_batch import MicroBatch, joined
from adatsq_pipe.stages.denoiser.outputs import Output
from adatsq_pipe.stages.denoiser.pipeline_call import Autoencoder, decode_latents, on_scheduler_step

Forward = Callable[[int, str, tuple[object, ...], dict[str, object]], Output]
"""(scheduler step, component, args, kwargs) -> what the pipeline gets in place of the denoiser's output."""


class LoopStopped(Exception):
    """Raised by a stand-in to leave the pipeline's loop early."""


@dataclass(kw_only=True)
class StandIn:
    """Answers every denoiser call with `forward`, counts scheduler steps and collects the latents that are decoded.

    A step ends where the scheduler, or a copy of it (for sound beside pictures, say), has moved on since the last
    call of a denoiser: once or, as in Cosmos, twice.
    """

    forward: Forward
    micro: MicroBatch
    """Bounds the samples that the autoencoder decodes at once."""
    decode: bool
    """Whether the pipeline may decode; if not, the loop stops at the first decode (LoopStopped)."""
    decodes_often: bool
    """Whether the pipeline decodes inside its loop; then it always may, and every decode's latents are collected."""
    keeps_graph: bool = False
    """Whether the collected latents keep their autograd graph; decodes are then computed again in the backward pass."""
    step: int = 0
    step_ended: bool = False
    latents: list[Tensor] = field(default_factory=list)
    """Copies of the latents that the autoencoder received, in order; only the first unless `decodes_often`."""

    @contextmanager
    def installed(self, parts: Mapping[str, nn.Module], vae: Autoencoder | None, scheduler: object) -> Iterator[None]:
        """Inside, `parts`, `vae` (or None) and the scheduler's class go through this object; restored afterwards."""
        for name, part in parts.items():
            part.forward = self._denoiser(name, part.forward)
        if vae is not None:
            vae.decode = self._decoder(vae, vae.decode)
        try:
            with on_scheduler_step(scheduler, self._end_step):
                yield
        finally:
            for part in parts.values():
                part.__dict__.pop("forward", None)
            if vae is not None:
                vae.__dict__.pop("decode", None)

    def _end_step(self) -> None:
        self.step_ended = True

    def _denoiser(self, part: str, real: Callable[..., Output]) -> Callable[..., Output]:
        @functools.wraps(real)
        def forward(*args: object, **kwargs: object) -> Output:
            if self.step_ended:
                self.step += 1
                self.step_ended = False
            return self.forward(self.step, part, args, kwargs)

        return forward

    def _decoder(self, vae: Autoencoder, real: Callable[..., Output]) -> Callable[..., Output]:
        @functools.wraps(real)
        def decode(latents: Tensor, *args: object, **kwargs: object) -> Output:
            self._collect(latents)
            ranges = self.micro.ranges(len(latents))
            parts = [functools.partial(decode_latents, vae, real, latents[i:j], *args, **kwargs) for i, j in ranges]
            decoded = [checkpoint(part, use_reentrant=False) if self.keeps_graph else part() for part in parts]
            return joined(decoded, [stop - start for start, stop in ranges])

        return decode

    def _collect(self, latents: Tensor) -> None:
        if self.latents and not self.decodes_often:
            return
        self.latents.append(latents.clone() if self.keeps_graph else latents.detach().clone())
        if not (self.decode or self.decodes_often):
            raise LoopStopped
