"""Whether a pipeline is supported, checked before any work: `run` and `inspect` share this check.

The arguments of a class are read from the source of the installed diffusers, without importing it, and the layers of
the transformer from the headers of its files: `run` must start at once, in a process that never needs torch.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from adatsq_pipe.stages.architecture.families._family import families
from adatsq_pipe.stages.base.errors import NotTaken
from adatsq_pipe.stages.names import CONDITIONS, TIMESTEPS
from adatsq_pipe.storage.checkpoint import find_pipeline, weight_shapes
from adatsq_pipe.storage.model_files import check_weights
from adatsq_pipe.storage.model_index import INDEX, check_configs, component_config, is_component

VECTORS = "vectors of a norm, gate or bias, not nn.Linear"
CONVOLUTION = "a convolution, not nn.Linear"
TABLE = "a table of vectors, not nn.Linear"
RAW = "raw parameters (grouped experts, fused projections), not nn.Linear"
NO_LINEARS = "its transformer has no linear layers inside repeated blocks; there is nothing to quantize"


@dataclass(frozen=True, kw_only=True)
class CallSource:
    """The arguments of a class's call, read from its source, and those passed on that carry a cache."""

    arguments: tuple[str, ...]
    required: tuple[str, ...]
    """Arguments without a default."""
    caches: tuple[str, ...]
    switches: tuple[str, ...]
    """Arguments that turn the cache off; it is on by default."""
    decodes_often: bool
    """Whether latents are decoded inside a loop: some frames, or one sample, at a time."""
    others: bool
    """Whether it takes arbitrary keyword arguments."""


@cache
def _sources() -> dict[str, Path]:
    """The file of every pipeline and denoiser class of the installed diffusers."""
    spec = find_spec("diffusers")
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parent
    files = [
        *sorted((root / "models" / "transformers").glob("*.py")),
        *sorted((root / "models" / "unets").glob("*.py")),
        *sorted((root / "pipelines").rglob("pipeline*.py")),
    ]
    return {
        name: file for file in files for name in re.findall(r"^class (\w+)\(", file.read_text("utf-8"), re.MULTILINE)
    }


def _classes(file: Path) -> list[ast.ClassDef]:
    """The classes that a source file defines."""
    text = file.read_text("utf-8")
    try:
        tree = ast.parse(text)
    except SystemError:  # Python before 3.11.8 and 3.12.2, where another thread parses too (python/cpython#106905)
        tree = ast.parse(text)
    return [node for node in tree.body if isinstance(node, ast.ClassDef)]


def call_source(name: str) -> CallSource | None:
    """The call of the pipeline (or denoiser) class `name`; None if diffusers has no source of it."""
    file = _sources().get(name)
    if file is None:
        return None
    classes = _classes(file)
    own = next(node for node in classes if node.name == name)
    calls = [node for node in own.body if isinstance(node, ast.FunctionDef) and node.name in ("__call__", "forward")]
    if not calls:
        bases = [base.id for base in own.bases if isinstance(base, ast.Name) and base.id in _sources()]
        return call_source(bases[0]) if bases else None
    taken = [*calls[0].args.args[1:], *calls[0].args.kwonlyargs]
    defaults = len(calls[0].args.defaults)
    required = calls[0].args.args[1 : len(calls[0].args.args) - defaults]
    passed = {word.arg for call in _calls(calls[0]) for word in call.keywords if word.arg}
    defaulted = zip(taken[len(taken) - defaults :], calls[0].args.defaults, strict=False)
    return CallSource(
        arguments=tuple(argument.arg for argument in taken),
        required=tuple(argument.arg for argument in required),
        caches=tuple(sorted(name for name in passed if "kv_cache" in name or "past_key" in name)),
        switches=tuple(argument.arg for argument, value in defaulted if "cache" in argument.arg and _is_true(value)),
        decodes_often=any(
            ast.unparse(call.func) in ("self.vae.decode", "self.decode_latents")
            for loop in ast.walk(calls[0])
            if isinstance(loop, ast.For | ast.While)
            for call in _calls(loop)
        ),
        others=calls[0].args.kwarg is not None,
    )


def components_taken(name: str) -> frozenset[str] | None:
    """The components that the pipeline class `name` takes; None if diffusers has no source of it.

    `from_pretrained` leaves out what model_index.json names besides them.
    """
    file = _sources().get(name)
    if file is None:
        return None
    classes = _classes(file)
    own = next(node for node in classes if node.name == name)
    made = [node for node in own.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    if made:
        return frozenset(argument.arg for argument in [*made[0].args.args[1:], *made[0].args.kwonlyargs])
    bases = [base.id for base in own.bases if isinstance(base, ast.Name) and base.id in _sources()]
    return components_taken(bases[0]) if bases else None


def _calls(within: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(within) if isinstance(node, ast.Call)]


def _is_true(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


def denoisers(index: Mapping[str, object]) -> list[str]:
    """Names of the components that denoise: the transformers of a model_index that are present."""
    named = [name for name, value in index.items() if is_component(value) and value != [None, None]]
    return sorted(name for name in named if "transformer" in name.split("_"))


def takes_labels(index: Mapping[str, object]) -> bool:
    """Whether the pipeline takes class labels (numbers) and no prompt."""
    source = call_source(str(index.get("_class_name", "")))
    return source is not None and "prompt" not in source.arguments and "class_labels" in source.arguments


def has_blocks_of_linears(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether weights by module name hold matrices inside a list of repeated blocks."""
    return any(len(shape) == 2 and re.match(r"\w+\.\d+\.", name) for name, shape in shapes.items())


def check_pipeline(
    folder: Path,
    prompts: Sequence[str] = (),
    prompt_arguments: Collection[str] = (),
    call: Mapping[str, object] | None = None,
    *,
    configs_suffice: bool = False,
) -> None:
    """Raise NotTaken if the pipeline folder cannot be quantized, or not with these `prompts`.

    `prompt_arguments` are the names of arguments that every prompt brings, `call` holds the arguments that all share.
    The error gives the reason in one line. StorageError if the folder is no pipeline, UnusableModel if
    `from_pretrained` would not read its weights; with `configs_suffice` it may have none.
    """
    index = find_pipeline(folder)
    taken = components_taken(str(index.get("_class_name", "")))
    check_weights(folder, taken=taken, configs_suffice=configs_suffice)
    if not index.get("_class_name"):
        raise NotTaken(f"{folder / INDEX} names no pipeline class (_class_name); copy the model folder again")
    if takes_labels(index) and (wrong := [prompt for prompt in prompts if not prompt.isdecimal()]):
        raise NotTaken(
            f"{index['_class_name']} takes class labels, and {wrong[0]!r} is none; give whole numbers in data.prompts "
            "and evaluate.prompts (nothing was started)"
        )
    for part in denoisers(index):
        config = component_config(folder, part).get("quantization_config")
        if config is not None:
            how = config.get("quant_method") if isinstance(config, dict) else config
            raise NotTaken(
                f"{folder} is quantized already ({part}/config.json has a quantization_config: {how}); "
                "give the full-precision folder"
            )
    check_configs(folder, index)
    if reason := refusal(index, weight_shapes(folder), prompt_arguments, call):
        raise NotTaken(f"{folder}: {reason} (nothing was started)")


def refusal(
    index: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    prompt_arguments: Collection[str] = (),
    call: Mapping[str, object] | None = None,
) -> str:
    """Why a pipeline with that model_index and those weights of its transformer cannot be quantized; "" if it can.

    Without shapes (a folder without weights) the layers are not checked. `prompt_arguments` are the names of arguments
    that every prompt brings, `call` holds the arguments that all share.
    """
    name = str(index.get("_class_name", ""))
    source = call_source(name)
    if source is not None:
        if not set(CONDITIONS) & set(source.arguments):
            return f"{name} takes neither a prompt nor class_labels; it cannot be calibrated"
        if source.caches and not _without_cache(index, source, prompt_arguments, call or {}):
            off = f"; set model.call.{source.switches[0]}=false" if source.switches else ""
            return (
                f"{name} keeps a cache inside its denoiser ({', '.join(source.caches)}): its calls depend on each "
                f"other, so they cannot be replayed one by one{off}"
            )
        if others := sorted(set(source.required) - set(CONDITIONS) - set(prompt_arguments)):
            return (
                f"{name} needs {', '.join(others)} besides its prompt; give it with each prompt in manifests, "
                "data.prompts_file and evaluate.prompts_file"
            )
        unknown = sorted(set(prompt_arguments) - set(source.arguments))
        if unknown and not source.others:
            return f"{name} takes no {unknown[0]}; it takes {', '.join(source.arguments)}"
    for part in denoisers(index):
        kind = str(index[part][1])
        called = call_source(kind)
        own_name = families()[kind].timestep if kind in families() else ""
        if called is not None and not {*TIMESTEPS, own_name} & set(called.arguments):
            return f"{name}'s {part}, {kind}, takes no timestep: there are no denoising steps to give bits to"
    if shapes and not has_blocks_of_linears(shapes):
        return NO_LINEARS
    return ""


def _without_cache(
    index: Mapping[str, Any], source: CallSource, prompt_arguments: Collection[str], call: Mapping[str, object]
) -> bool:
    """Whether the pipeline's cache stays empty in this call: switched off, or without the argument that fills it."""
    if any(call.get(switch) is False for switch in source.switches):
        return True
    fillers = [families()[kind].cached_with for part in denoisers(index) if (kind := str(index[part][1])) in families()]
    return any(fillers) and not set(fillers) & set(prompt_arguments)
