"""Any diffusers pipeline's denoiser, driven through the pipeline's own loop.

This module contains no sampling loop: `pipe(...)` runs its own `__call__`, and a stand-in answers the calls of
`pipe.transformer.forward`. There are three modes: *record* (call the real denoiser and keep its outputs), *replay*
(return recorded outputs: the final latents are bit-identical) and *teleport* (replay up to call j, capture the inputs
that the pipeline builds for it, stop). So the state before call j is a pure function of the seeds and of j outputs,
with CFG, guidance, shifts and multi-step schedulers as the pipeline has them.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from fractions import Fraction
from functools import partial
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
from adatsq_pipe.stages.denoiser.call import Answer, Around, Call, CallPart, Trajectory, bare_pass
from adatsq_pipe.stages.denoiser.conditions import Conditions, collated
from adatsq_pipe.stages.denoiser.outputs import Output, leaves, rebuild, structure
from adatsq_pipe.stages.denoiser.pipeline_call import (
    ArraysOfGraphs,
    advice,
    cache_prompt_encoding,
    describe,
    join_latents,
    pictures_of,
    undecorated_call,
)
from adatsq_pipe.stages.denoiser.signatures import keep_signatures
from adatsq_pipe.stages.denoiser.stand_in import LoopStopped, StandIn
from adatsq_pipe.stages.denoiser.step_clock import StepClock
from adatsq_pipe.stages.denoiser.stored_names import check_names
from adatsq_pipe.stages.numerics.products import use_faster_products
from adatsq_pipe.stages.runtime.clock import timestep_of
from adatsq_pipe.storage.checkpoint import find_pipeline
from adatsq_pipe.storage.errors import StorageError

MOST_CALLS = 10_000
"""Denoiser calls of one run of a pipeline; more are a mistake."""


class Denoiser:
    """The pipeline in `folder`, ready to record, replay and teleport. Each caption is encoded once.

    `call` holds arguments of every pipeline call; with `blockwise`, blocks are on `device` only while they compute.
    `cast` is a copy of the folder with weights in `dtype`, from which they are loaded.
    Raises StageError if the pipeline does not load or does not accept `call`, NotTaken if it cannot be quantized,
    OutOfMemory if its weights do not fit.
    """

    def __init__(
        self, folder: str, *, dtype: str, device: str, call: dict[str, Any], blockwise: bool = False,
        cast: Path | None = None,
    ) -> None:  # fmt: skip
        index = find_pipeline(Path(folder))
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        try:
            read = str(cast or folder)
            pipe = DiffusionPipeline.from_pretrained(read, dtype=getattr(torch, dtype), local_files_only=True)
        except Exception as error:
            raise StageError(f"{folder} does not load as a diffusers pipeline: {error}") from error
        self.parts: dict[str, nn.Module] = {name: getattr(pipe, name).eval() for name in denoisers(index)}
        """The denoising components by name. Wan 2.2 has two: one for early steps, one for late steps."""
        check_names(Path(folder), self.parts)
        try:
            self.pipe = pipe if blockwise else pipe.to(device)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"the weights of {folder} in {dtype} do not fit into {device} ({out_of_memory_message(error)}); give "
                "each worker more of a GPU (cluster.gpus_per_worker) or a larger one, or set compute.dtype=bfloat16"
            ) from error
        self.pipe.set_progress_bar_config(disable=True)
        self.transformer = several(self.parts)
        use_faster_products(self.transformer)
        self._check_sharing()
        self.offload = offload_blocks(self.pipe.components, self.parts, device) if blockwise else None
        self.device, self._call = device, dict(call)
        self.micro = MicroBatch()
        """Micro-batch limit, set by the worker that currently uses this denoiser."""
        source = call_source(type(self.pipe).__name__)
        self._decodes_often = source is not None and source.decodes_often
        self._condition = self._condition_argument()
        self._arguments = dict[str, list[str]]()
        """The names of a component's arguments, once they were needed: to read them takes longer than a small layer."""
        cache_prompt_encoding(self.pipe)
        keep_signatures(self.transformer)
        for component in self.pipe.components.values():
            if isinstance(component, nn.Module):
                component.requires_grad_(False)

    def _check_sharing(self) -> None:
        """Raise NotTaken if another component (Z-Image's ControlNet) shares quantizable layers with the denoiser: it
        runs them outside the denoiser's calls, where no step's bits apply."""
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

    def _drive(
        self,
        conditions: Conditions,
        answer: Answer,
        *,
        decode: bool,
        differentiable: bool = False,
        clock: StepClock | None = None,
    ) -> tuple[Any, Any]:
        """Run the pipeline with `answer` in place of its denoisers; `clock` counts its steps.

        Returns (pictures, final latents): pictures are None if the loop stopped early, latents as they were decoded.
        `differentiable` runs the loop under the caller's grad mode, and latents keep their graph, as do the pictures
        of a pipeline that has no latents.
        """
        samples, clock = len(conditions.prompts), clock or StepClock()
        real = self._forwards()

        def forward(step: int, part: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Output:
            timesteps = timestep_of(real[part], args, kwargs, timestep_name(self.parts[part]))
            ordinal = clock.call(step, (float(timesteps.min()), float(timesteps.max())))
            return answer(Call(args=args, kwargs=kwargs, step=ordinal, timestep=clock.timestep, part=part))

        prompts: Any = list(conditions.prompts)
        generators: Any = [torch.Generator("cpu").manual_seed(seed) for seed in conditions.seeds]
        if self._condition == "class_labels":
            prompts = [int(prompt) for prompt in prompts]
        elif samples == 1:
            (prompts,), (generators,) = prompts, generators
        stand_in = StandIn(
            forward=forward,
            micro=self.micro,
            decode=decode,
            decodes_often=self._decodes_often,
            keeps_graph=differentiable,
        )
        call = undecorated_call(self.pipe) if differentiable else self.pipe
        arrays = ArraysOfGraphs()
        vae, pictures = getattr(self.pipe, "vae", None), None
        with stand_in.installed(self.parts, vae, self.pipe.scheduler), torch.random.fork_rng(devices=[]):
            torch.manual_seed(conditions.seeds[0])
            try:
                arguments = {**self._call, **collated(conditions.inputs)}
                arguments |= {self._condition: prompts, "generator": generators, "output_type": "np"}
                with arrays if differentiable else nullcontext():
                    pictures = pictures_of(call(**arguments), samples)
            except LoopStopped:
                pass
            except (StageError, StorageError, OSError, torch.OutOfMemoryError):
                raise  # another try may pass, or it has its own words
            except Exception as error:  # pipelines raise of all kinds for arguments that they do not take
                said = " ".join(str(error).split())
                raise StageError(
                    f"{type(self.pipe).__name__} fails as it is called here: {type(error).__name__}: {said}; "
                    f"called with {describe(arguments)}; {advice(error, self.pipe, samples)}"
                ) from error
        if arrays.last is not None and pictures is not None and arrays.last.shape == pictures.shape:
            pictures = arrays.last
        return pictures, join_latents(stand_in.latents, samples) if stand_in.latents else pictures

    @torch.no_grad()
    def record(
        self,
        conditions: Conditions,
        *,
        decode: bool = False,
        see: Callable[[int, Call], None] | None = None,
        after: Sequence[Output] = (),
        keep: bool = True,
        around: Around = bare_pass,
    ) -> Trajectory:
        """Run the real denoiser and `keep` its outputs; `see(j, call)` receives the inputs of call j before it is made,
        and `around` makes every forward pass.

        The first calls get what is in `after` and are not computed.
        """
        outputs: list[Output] = []
        steps: list[int] = []
        clock, real = StepClock(), self._forwards()

        def answer(call: Call) -> Output:
            place = len(steps)
            if see is not None:
                see(place, call)
            output = after[place] if place < len(after) else self._through(real[call.part], call, around)
            if keep:
                outputs.append(output)
            steps.append(call.step)
            return output

        pictures, latents = self._drive(conditions, answer, decode=decode, clock=clock)
        return Trajectory(
            outputs=tuple(outputs), steps=tuple(steps), timesteps=clock.timesteps, latents=latents, pictures=pictures
        )

    @torch.no_grad()
    def rehearse(self, conditions: Conditions, around: Around = bare_pass) -> list[Call]:
        """Every call of the loop, at the cost of one per denoiser and size of inputs: the first output of each kind
        answers all its calls. `around` makes the forward passes.

        Raises StageError for a loop of more than `MOST_CALLS` calls.
        """
        real, calls, clock = self._forwards(), list[Call](), StepClock()
        first = dict[tuple[object, ...], Output]()

        def answer(call: Call) -> Output:
            calls.append(call)
            if len(calls) > MOST_CALLS:
                raise StageError(f"the loop calls its denoiser more than {MOST_CALLS} times; ask for fewer steps")
            kind = (call.part, *(leaf.shape for leaf in leaves([call.args, call.kwargs])))
            if kind not in first:
                first[kind] = self._through(real[call.part], call, around)
            output = first[kind]
            return rebuild(structure(output), iter([leaf.clone() for leaf in leaves(output)]))

        self._drive(conditions, answer, decode=False, clock=clock)
        return [replace(call, timestep=t) for call, t in zip(calls, clock.timesteps, strict=True)]

    @torch.no_grad()
    def replay(
        self,
        conditions: Conditions,
        outputs: Sequence[Output],
        *,
        see: Callable[[int, Call], None] | None = None,
        decode: bool = False,
    ) -> tuple[Tensor, Any]:
        """Final latents (and pictures, with `decode`) that recorded `outputs` lead to.

        `see(j, call)` receives the inputs of call j.
        """
        recorded, place = iter(outputs), 0

        def answer(call: Call) -> Output:
            nonlocal place
            if see is not None:
                see(place, call)
            place += 1
            return next(recorded)

        pictures, latents = self._drive(conditions, answer, decode=decode)
        return latents, pictures

    def differentiable(self, conditions: Conditions, answer: Callable[[int, Call], Output]) -> Any:
        """Final latents with the autograd graph of the pipeline's loop; `answer(j, call)` is the output of call j.

        A pipeline that turns its latents into numpy in its loop gives what has no graph, or raises.
        """
        places = itertools.count()
        with torch.enable_grad():
            drawn = self._drive(conditions, lambda call: answer(next(places), call), decode=False, differentiable=True)
        return drawn[1]

    def _forwards(self) -> dict[str, Callable[..., Output]]:
        """The real forwards by component, from before a stand-in takes their place."""
        return {name: part.forward for name, part in self.parts.items()}

    def present(self, module: nn.Module) -> AbstractContextManager[None]:
        """Inside, the weights of a block's `module` are on the device."""
        return nullcontext() if self.offload is None else self.offload.present(module)

    def run(self, call: Call, around: Around = bare_pass) -> Output:
        """The real denoiser's output for `call`; `around` makes the forward passes."""
        return self._through(self.parts[call.part].forward, call, around)

    def _through(self, forward: Callable[..., Output], call: Call, around: Around) -> Output:
        """The output of the real `forward`, computed in parts that fit the micro-batch."""
        parts = self._cut(forward, call)
        sizes = [size for _, size in parts]
        shares = [Fraction(size, max(1, sum(sizes))) for size in sizes]
        outputs = [
            around(CallPart(call=call, place=i, share=share), partial(forward, *part.args, **part.kwargs))
            for i, ((part, _), share) in enumerate(zip(parts, shares, strict=True))
        ]
        return joined(outputs, sizes)

    def cut(self, call: Call) -> list[tuple[Call, int]]:
        """The call split into parts that fit, with their numbers of samples; one part unless memory has run out."""
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
        """Inputs of call `len(outputs)` after earlier calls returned `outputs`; the final latents if the loop ends."""
        recorded = iter(outputs)
        arrived: list[Call] = []

        def answer(call: Call) -> Output:
            for output in recorded:
                return output
            arrived.append(call)
            raise LoopStopped

        _, latents = self._drive(conditions, answer, decode=False)
        return arrived[0] if arrived else latents

    def state(self, arrived: Call | Tensor) -> list[Tensor]:
        """The noisy sample of a call (the first argument, unless a family names another), or the final latents."""
        if isinstance(arrived, Tensor):
            return [arrived]
        return leaves(self._sample(self.parts[arrived.part].forward, arrived))

    def _sample(self, forward: Callable[..., Output], call: Call) -> Any:
        """The noisy sample among a call's arguments: a tensor [samples, ...], or a list of one tensor per sample."""
        names = self._arguments.get(call.part)
        if names is None:
            names = self._arguments[call.part] = list(inspect.signature(forward).parameters)
        place = names.index(sample_name(self.parts[call.part]) or names[0])
        return call.args[place] if place < len(call.args) else call.kwargs[names[place]]
