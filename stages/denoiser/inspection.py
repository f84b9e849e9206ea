"""What quantization would do to a model: which layers are quantized, which modules are skipped and why, and the cost.

`walk` needs the modules alone, which may lie on the meta device: a config suffices. `watch` runs one call of the
denoiser inside the pipeline's own loop, which also shows which layers share an input, which get one vector per sample,
which run twice, and multiply-accumulates. Nothing is written.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from adatsq_pipe.stages.architecture import support
from adatsq_pipe.stages.architecture.families._family import Family, family_of, timestep_name
from adatsq_pipe.stages.architecture.layers import SkippedModule, quantizable_linears, skipped_modules
from adatsq_pipe.stages.base.errors import NotTaken, StageError
from adatsq_pipe.stages.base.survey import LayerInfo
from adatsq_pipe.stages.denoiser.conditions import Conditions
from adatsq_pipe.stages.denoiser.denoiser import Denoiser
from adatsq_pipe.stages.denoiser.hooks import survey
from adatsq_pipe.stages.denoiser.pipeline_call import check_timesteps
from adatsq_pipe.stages.methods._layer import MODULATION
from adatsq_pipe.stages.names import CONDITIONS, pattern_of
from adatsq_pipe.stages.runtime.clock import timestep_argument


@dataclass(frozen=True, kw_only=True)
class Group:
    """Linear layers of the same shape whose names differ in block numbers only (`*`)."""

    pattern: str
    in_features: int
    out_features: int
    count: int
    parameters: int
    kind: str
    """"tokens", or "conditioning": fed one vector a sample, so that the activations are not rounded."""
    macs: int | None
    """Multiply-accumulates of all of them in one call and sample; None if no call was run."""


@dataclass(frozen=True, kw_only=True)
class SkippedModules:
    """Modules that are not quantized, of one name pattern, class and reason."""

    pattern: str
    kind: str
    count: int
    parameters: int
    why: str


@dataclass(frozen=True, kw_only=True)
class CallTrace:
    """Findings of one call: a survey row by layer, layers that ran twice or never, and the loop around it."""

    rows: Mapping[str, LayerInfo]
    repeated: tuple[str, ...]
    unused: tuple[str, ...]
    steps: int
    calls_per_step: int
    timesteps: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """One denoiser. `groups` and `left` hold all its parameters between them."""

    component: str
    kind: str
    pipeline: str
    condition: str
    timestep: tuple[str, int] | None
    """Name and position of the timestep among the arguments of a call."""
    parameters: int
    groups: tuple[Group, ...]
    left: tuple[SkippedModules, ...]
    shared: tuple[tuple[str, ...], ...]
    """Patterns of layers fed the same tensor, which is stored once."""
    rows: tuple[LayerInfo, ...]
    """Name, kind, in, out and source of every layer that is quantized, as in the survey of a capture."""
    watched: CallTrace | None
    family: str
    """What a family file changes, and why; empty where the rules do."""


def on_meta(config: Mapping[str, object], where: object) -> nn.Module:
    """The transformer that a diffusers config describes, without memory for its weights. Raises NotTaken."""
    name = str(config.get("_class_name", ""))
    made: Any = getattr(diffusers, name, None)
    known = inspect.isclass(made) and issubclass(made, diffusers.ModelMixin)
    if not known:
        raise NotTaken(f"{where}: _class_name {name!r} is no model of the installed diffusers {diffusers.__version__}")
    try:
        with torch.device("meta"):
            model: nn.Module = made.from_config(dict(config))
    except Exception as error:  # models raise of all kinds for values that they do not take
        said = " ".join(str(error).split())
        raise NotTaken(f"{where}: {name} cannot be made of these values: {type(error).__name__}: {said}") from error
    return model


def walk(transformer: nn.Module, *, watched: CallTrace | None, component: str, pipeline: str) -> Inspection:
    """Inspect a denoiser by its modules, and by a call if one was run. Raises NotTaken if nothing can be quantized."""
    layers = quantizable_linears(transformer)
    if not layers:
        raise NotTaken(support.NO_LINEARS)
    rows = [_row(name, layer, watched) for name, layer in layers.items()]
    taken = [row for row in rows if row is not None]
    others = [*skipped_modules(transformer), *_not_quantized(layers, watched)]
    source = support.call_source(pipeline)
    return Inspection(
        component=component,
        kind=type(transformer).__name__,
        pipeline=pipeline,
        condition=next((c for c in CONDITIONS if source and c in source.arguments), ""),
        timestep=timestep_argument(transformer.forward, timestep_name(transformer)),
        parameters=sum(parameter.numel() for parameter in transformer.parameters()),
        groups=_groups(taken, layers),
        left=grouped(others),
        shared=_shared(taken),
        rows=tuple(taken),
        watched=watched,
        family=_describe(family_of(transformer)),
    )


def _describe(family: Family | None) -> str:
    if family is None:
        return ""
    changes = [f"blocks are {', '.join(family.blocks)}"] if family.blocks else []
    changes += [f"left: {', '.join(family.leave)}"] if family.leave else []
    changes += [f"the timestep is {family.timestep}"] if family.timestep else []
    changes += [f"the sample is {family.sample}"] if family.sample else []
    changes += [f"run more than once in a call: {', '.join(family.repeated)}"] if family.repeated else []
    changes += [f"its cache is empty without {family.cached_with}"] if family.cached_with else []
    return f"{'; '.join(changes)} ({family.why})"


def _row(name: str, layer: nn.Linear, watched: CallTrace | None) -> LayerInfo | None:
    """The survey row of a layer; guessed from its name if no call was run, None if the call showed it is not taken."""
    if watched is not None:
        return watched.rows.get(name)
    return LayerInfo(
        name=name,
        in_features=layer.in_features,
        out_features=layer.out_features,
        role="conditioning" if any(part in name.lower() for part in MODULATION) else "tokens",
        input_of=name,
        macs=None,
    )


def _not_quantized(layers: Mapping[str, nn.Linear], watched: CallTrace | None) -> list[SkippedModule]:
    if watched is None:
        return []
    reasons = dict.fromkeys(watched.repeated, "runs twice in one call")
    reasons |= dict.fromkeys(watched.unused, "did not run in the call, or not as a module")
    return [
        SkippedModule(name=name, kind="Linear", parameters=_size(layers[name]), why=why)
        for name, why in reasons.items()
    ]


def _size(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters(recurse=False))


def _groups(rows: Sequence[LayerInfo], layers: Mapping[str, nn.Linear]) -> tuple[Group, ...]:
    groups: dict[tuple[str, int, int, str], list[LayerInfo]] = {}
    for row in rows:
        groups.setdefault((pattern_of(row.name), row.in_features, row.out_features, row.role), []).append(row)
    return tuple(
        Group(
            pattern=pattern,
            in_features=wide,
            out_features=out,
            count=len(members),
            parameters=sum(_size(layers[row.name]) for row in members),
            kind=kind,
            macs=None if members[0].macs is None else sum(row.macs or 0 for row in members),
        )
        for (pattern, wide, out, kind), members in groups.items()
    )


def grouped(left: Iterable[SkippedModule]) -> tuple[SkippedModules, ...]:
    """The skipped modules, grouped by name pattern, class and reason."""
    groups: dict[tuple[str, str, str], list[SkippedModule]] = {}
    for one in left:
        groups.setdefault((pattern_of(one.name), one.kind, one.why), []).append(one)
    return tuple(
        SkippedModules(
            pattern=pattern, kind=kind, count=len(ones), parameters=sum(one.parameters for one in ones), why=why
        )
        for (pattern, kind, why), ones in groups.items()
    )


def _shared(rows: Sequence[LayerInfo]) -> tuple[tuple[str, ...], ...]:
    sharers: dict[str, list[str]] = {}
    for row in rows:
        sharers.setdefault(row.input_of, []).append(pattern_of(row.name))
    return tuple(dict.fromkeys(tuple(dict.fromkeys(names)) for names in sharers.values() if len(names) > 1))


def watch(
    folder: Path,
    *,
    dtype: str,
    device: str,
    call: dict[str, object],
    prompt: str,
    arguments: Mapping[str, object] | None = None,
) -> dict[str, tuple[nn.Module, CallTrace]]:
    """Open the pipeline and run one call of each denoiser, by component; the loop continues with that call's output.
    `arguments` are those that the prompt brings.

    Raises NotTaken, with what the pipeline says, if it is not to be called so.
    """
    denoiser = Denoiser(str(folder), dtype=dtype, device=device, call=call)
    try:
        calls = denoiser.rehearse(Conditions(prompts=(prompt,), seeds=(0,), inputs=(arguments or {},)))
        check_timesteps([call.timestep for call in calls])
    except StageError as error:
        raise NotTaken(f"{error} (nothing was started)") from error
    steps = [call.step for call in calls]
    traces: dict[str, tuple[nn.Module, CallTrace]] = {}
    for part, module in denoiser.parts.items():
        own = [call for call in calls if call.part == part]
        if not own:
            raise StageError(f"{part} is never called; ask for more steps in model.call.num_inference_steps")
        with torch.no_grad():
            seen = survey(partial(denoiser.run, own[0]), quantizable_linears(module), 1)
        traces[part] = (
            module,
            CallTrace(
                rows={row.name: row for row in seen.layers},
                repeated=seen.repeated,
                unused=seen.unused,
                steps=steps[-1] + 1,
                calls_per_step=max(steps.count(step) for step in steps),
                timesteps=tuple(call.timestep for call in own),
            ),
        )
    return traces
