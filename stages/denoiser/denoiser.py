"""Any diffusers pipeline's denoiser, driven through the pipeline's own loop.

No sampling loop is written here: `pipe(...)` runs its own `__call__` and this module stands in for
`pipe.transformer.forward`. Three ways of doing so: *record* (call the real one and keep its outputs), *replay* (return
recorded outputs: final latents come out bit-identical) and *teleport* (replay up to call j, take the inputs which the
pipeline builds for it, stop). So the state before call j is a pure function of the seeds and of j outputs, with CFG,
guidance, shifts and multi-step schedulers as the pipeline has them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from adatsq_pipe.stages.architecture.families._family import sample_name, timestep_name
from adatsq_pipe.stages.architecture.layers import quantizable_linears, several
from adatsq_pipe.stages.architecture.support import call_source, denoisers
from adatsq_pipe.stages.base.errors import NotTaken, StageError
from adatsq_pipe.stages.base.micro_batch import MicroBatch, OutOfMemory, cut, joined, out_of_memory_message
from adatsq_pipe.stages.denoiser.block_offload import offload_blocks
from adatsq_pipe.stages.denoiser.conditions import Conditions, collated
from adatsq_pipe.stages.denoiser.outputs import Output, leaves, rebuild, structure
from adatsq_pipe.stages.denoiser.pipeline_call import (
    OF_PIPELINES,
    advice,
    decoded,
    on_scheduler_step,
    pictures_of,
    plain,
    together,
    told,
)
from adatsq_pipe.stages.runtime.clock import timestep_of
from adatsq_pipe.storage.checkpoint import find_pipeline
from adatsq_pipe.storage.errors import StorageError

Forwards = dict[str, Callable[..., Output]]
"""Real forwards by component."""


class _Reached(Exception):
    """Raised by a stand-in to leave the pipeline's loop."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """Inputs of one denoiser call, the scheduler step it belongs to, and its timestep in the denoiser's unit."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    step: int
    timestep: float
    part: str = "transformer"
    """The pipeline's component that is called."""


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """A recorded run: outputs by call, their steps and timesteps, and the latents handed to the autoencoder."""

    outputs: tuple[Output, ...]
    steps: tuple[int, ...]
    timesteps: tuple[float, ...]
    latents: Tensor
    pictures: Any = None


class Denoiser:
    """A pipeline opened from `folder`, ready to be recorded, replayed and teleported. Captions are encoded once."""

    def __init__(self, folder: str, *, dtype: str, device: str, call: dict[str, Any], blockwise: bool = False) -> None:
        index = find_pipeline(Path(folder))
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        try:
            pipe = DiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True)
        except Exception as error:
            raise StageError(f"{folder} does not load as a diffusers pipeline: {error}") from error
        try:
            self.pipe = pipe if blockwise else pipe.to(device)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"the weights of {folder} in {dtype} do not fit into {device} ({out_of_memory_message(error)}); give "
                "each worker more of a GPU (cluster.gpus_per_worker) or a larger one, or set compute.dtype=bfloat16"
            ) from error
        self.pipe.set_progress_bar_config(disable=True)
        self.parts: dict[str, nn.Module] = {name: getattr(self.pipe, name).eval() for name in denoisers(index)}
        """The denoising components by name: one, or as in Wan2.2 one for the early steps and one for the late."""
        self.transformer = several(self.parts)
        self._refuse_sharing()
        self.offload = offload_blocks(self.pipe.components, self.parts, device) if blockwise else None
        self.device, self._call = device, dict(call)
        self.micro = MicroBatch()
        """How many samples at a time: of whoever has the denoiser."""
        source = call_source(type(self.pipe).__name__)
        self._decodes_often = source is not None and source.decodes_often
        self._condition = self._condition_argument()
        self._remember_prompts()

    def _refuse_sharing(self) -> None:
        """Raise NotTaken if another component (Z-Image's ControlNet) holds layers of the denoiser that are quantized:
        it runs them outside the calls whose steps have bits."""
        layers = {id(layer): name for name, layer in quantizable_linears(self.transformer).items()}
        for name, part in self.pipe.components.items():
            if not isinstance(part, nn.Module) or name in self.parts:
                continue
            if shared := [layers[id(module)] for module in part.modules() if id(module) in layers]:
                raise NotTaken(
                    f"{type(self.pipe).__name__}'s {name} runs {len(shared)} layers of its denoiser itself (first "
                    f"{shared[0]}): outside the denoiser's calls no policy can follow"
                )

    def _condition_argument(self) -> str:
        names = inspect.signature(self.pipe.__call__).parameters
        for name in ("prompt", "class_labels"):
            if name in names:
                unknown = sorted(set(self._call) - set(names))
                if unknown:
                    raise StageError(f"[model.call] has {unknown[0]!r}, which {type(self.pipe).__name__} does not take")
                return name
        raise StageError(f"{type(self.pipe).__name__} takes neither a prompt nor class_labels; it cannot be calibrated")

    def _remember_prompts(self) -> None:
        real = getattr(self.pipe, "encode_prompt", None)
        if real is None:
            return
        known: dict[str, Any] = {}

        @functools.wraps(real)
        def remembered(*args: Any, **kwargs: Any) -> Any:
            if not plain([args, kwargs]):
                return real(*args, **kwargs)
            key = repr((args, sorted(kwargs.items())))
            if key not in known:
                known[key] = real(*args, **kwargs)
            return known[key]

        self.pipe.encode_prompt = remembered

    @contextmanager
    def _standing_in(self, forward: Callable[..., Output], decode: bool) -> Iterator[dict[str, Any]]:
        """Put `forward(step, part, args, kwargs)` in each denoiser's place; count scheduler steps; catch latents.

        A step ends where the scheduler, or a copy of it (for sound beside pictures, say), has moved on since the last
        call of a denoiser: once or, as in Cosmos, twice.
        """
        seen: dict[str, Any] = {"step": 0, "moved": False, "decoded": []}
        vae = getattr(self.pipe, "vae", None)

        def stand_in(part: str) -> Callable[..., Output]:
            @functools.wraps(self.parts[part].forward)
            def called(*args: Any, **kwargs: Any) -> Output:
                seen["step"] += seen["moved"]
                seen["moved"] = False
                return forward(seen["step"], part, args, kwargs)

            return called

        def moved() -> None:
            seen["moved"] = True

        for name, part in self.parts.items():
            part.forward = stand_in(name)
        if vae is not None:
            real_decode = vae.decode

            @functools.wraps(real_decode)
            def caught(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
                if self._decodes_often or not seen["decoded"]:
                    seen["decoded"].append(latents.detach().clone())
                    if not decode and not self._decodes_often:
                        raise _Reached
                ranges = self.micro.ranges(len(latents))
                parts = [decoded(vae, real_decode, latents[i:j], *args, **kwargs) for i, j in ranges]
                return joined(parts, [j - i for i, j in ranges])

            vae.decode = caught
        try:
            with on_scheduler_step(self.pipe.scheduler, moved):
                yield seen
        finally:
            for holder, name in (*((part, "forward") for part in self.parts.values()), (vae, "decode")):
                if holder is not None:
                    holder.__dict__.pop(name, None)

    def _drive(self, conditions: Conditions, forward: Callable[..., Output], *, decode: bool) -> tuple[Any, Any]:
        """Run the pipeline with `forward` for its denoiser: (pictures or None, final latents or None if left early)."""
        given: Any = list(conditions.prompts)
        generators: Any = [torch.Generator("cpu").manual_seed(seed) for seed in conditions.seeds]
        if self._condition == "class_labels":
            given = [int(prompt) for prompt in given]
        elif len(given) == 1:
            (given,), (generators,) = given, generators
        with self._standing_in(forward, decode) as seen, torch.random.fork_rng(devices=[]):
            torch.manual_seed(conditions.seeds[0])
            pictures = None
            try:
                more = {**self._call, **collated(conditions.inputs)}
                arguments = {**more, self._condition: given, "generator": generators, "output_type": "np"}
                pictures = pictures_of(self.pipe(**arguments), len(conditions.prompts))
            except _Reached:
                pass
            except (StageError, StorageError, torch.OutOfMemoryError):
                raise
            except OF_PIPELINES as error:
                raise StageError(
                    f"{type(self.pipe).__name__} does not run as it is called here: {type(error).__name__}: {error}; "
                    f"called with {told(arguments)}; {advice(error, self.pipe, len(conditions.prompts))}"
                ) from error
        return pictures, together(seen["decoded"], len(conditions.prompts)) if seen["decoded"] else pictures

    @torch.no_grad()
    def record(
        self, conditions: Conditions, *, decode: bool = False, see: Callable[[int, Call], None] | None = None
    ) -> Trajectory:
        """Run the real denoiser and keep what it returned; `see(j, call)` gets the inputs of call j."""
        outputs: list[Output] = []
        steps: list[int] = []
        timesteps: list[float] = []
        real = self._forwards()

        def forward(step: int, part: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Output:
            call = self._as_call(real, step, part, args, kwargs)
            if see is not None:
                see(len(outputs), call)
            output = self._through(real[part], call)
            outputs.append(output)
            steps.append(step)
            timesteps.append(call.timestep)
            return output

        pictures, latents = self._drive(conditions, forward, decode=decode)
        return Trajectory(
            outputs=tuple(outputs), steps=tuple(steps), timesteps=tuple(timesteps), latents=latents, pictures=pictures
        )

    @torch.no_grad()
    def rehearse(self, conditions: Conditions) -> list[Call]:
        """Every call of the loop at the price of one for each denoiser, whose output its other calls get too."""
        real, calls, first = self._forwards(), list[Call](), dict[str, Output]()

        def forward(step: int, part: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Output:
            calls.append(self._as_call(real, step, part, args, kwargs))
            if part not in first:
                first[part] = real[part](*args, **kwargs)
            return rebuild(structure(first[part]), iter([leaf.clone() for leaf in leaves(first[part])]))

        self._drive(conditions, forward, decode=False)
        return calls

    @torch.no_grad()
    def replay(
        self,
        conditions: Conditions,
        outputs: Sequence[Output],
        *,
        see: Callable[[int, Call], None] | None = None,
        decode: bool = False,
    ) -> tuple[Tensor, Any]:
        """Final latents (and pictures, with `decode`) that recorded `outputs` lead to; `see(j, call)` gets inputs."""
        given, real, place = iter(outputs), self._forwards(), 0

        def forward(step: int, part: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Output:
            nonlocal place
            if see is not None:
                see(place, self._as_call(real, step, part, args, kwargs))
            place += 1
            return next(given)

        pictures, latents = self._drive(conditions, forward, decode=decode)
        return latents, pictures

    def _forwards(self) -> Forwards:
        return {name: part.forward for name, part in self.parts.items()}

    def _timestep(self, real: Forwards, part: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        return float(timestep_of(real[part], args, kwargs, timestep_name(self.parts[part])).max())

    def _as_call(self, real: Forwards, step: int, part: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        timestep = self._timestep(real, part, args, kwargs)
        return Call(args=args, kwargs=kwargs, step=step, timestep=timestep, part=part)

    def run(self, call: Call) -> Output:
        """What the denoiser that was called returns."""
        return self._through(self.parts[call.part].forward, call)

    def _through(self, forward: Callable[..., Output], call: Call) -> Output:
        """What the real `forward` returns, called as often as the micro-batch asks for."""
        parts = self._cut(forward, call)
        return joined([forward(*part.args, **part.kwargs) for part, _ in parts], [size for _, size in parts])

    def cut(self, call: Call) -> list[tuple[Call, int]]:
        """The call in parts that fit, with their samples: one, itself, unless memory has run out."""
        return self._cut(self.parts[call.part].forward, call)

    def _cut(self, forward: Callable[..., Output], call: Call) -> list[tuple[Call, int]]:
        of = len(self._sample(forward, call))
        ranges = self.micro.ranges(of)
        if len(ranges) <= 1:
            return [(call, of)]
        parts = ((cut(call.args, of, *part), cut(call.kwargs, of, *part)) for part in ranges)
        return [
            (replace(call, args=args, kwargs=kwargs), stop - start)
            for (args, kwargs), (start, stop) in zip(parts, ranges, strict=True)
        ]

    @torch.no_grad()
    def teleport(self, conditions: Conditions, outputs: Sequence[Output]) -> Call | Tensor:
        """Inputs of call `len(outputs)`, given the outputs of the calls before; final latents if that was the last."""
        given, real = iter(outputs), self._forwards()
        found: list[Call] = []

        def forward(step: int, part: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Output:
            for output in given:
                return output
            found.append(self._as_call(real, step, part, args, kwargs))
            raise _Reached

        _, latents = self._drive(conditions, forward, decode=False)
        return found[0] if found else latents

    def state(self, arrived: Call | Tensor) -> list[Tensor]:
        """The noisy sample of a call (the first argument, unless a family says another), or the final latents."""
        if isinstance(arrived, Tensor):
            return [arrived]
        return leaves(self._sample(self.parts[arrived.part].forward, arrived))

    def _sample(self, forward: Callable[..., Output], call: Call) -> Any:
        """What a call has for the noisy sample: a tensor [samples, ...], or a list with a tensor each."""
        names = list(inspect.signature(forward).parameters)
        place = names.index(sample_name(self.parts[call.part]) or names[0])
        return call.args[place] if place < len(call.args) else call.kwargs[names[place]]
