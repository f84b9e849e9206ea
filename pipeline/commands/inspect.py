"""`inspect`: which layers of a model a run would quantize, which not and why, and what the run needs. Writes nothing.

It loads a pipeline folder that has weights and calls its denoiser once. It reads a config without loading weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adatsq_pipe.pipeline import config as configuration
from adatsq_pipe.pipeline.commands import completion, encoders
from adatsq_pipe.pipeline.commands.inspect_quantized import layers_as_plain, layers_as_text, quantized_layers
from adatsq_pipe.pipeline.commands.layout import aligned, many
from adatsq_pipe.pipeline.commands.shell import example, user_errors
from adatsq_pipe.pipeline.config import PRESETS, RunConfig
from adatsq_pipe.pipeline.devices import check_here
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.stages.architecture import memory, support
from adatsq_pipe.stages.architecture.support import VECTORS
from adatsq_pipe.stages.base.settings import ComputeSettings, DataSettings, ModelSettings
from adatsq_pipe.stages.calibration.survey import CaptureSettings
from adatsq_pipe.stages.denoiser.conditions import arguments_of, picture_mode
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.storage.checkpoint import find_pipeline, stored_sizes, weight_shapes
from adatsq_pipe.storage.files import read_json_object
from adatsq_pipe.storage.model_files import check_weights

if TYPE_CHECKING:
    from adatsq_pipe.pipeline.commands.footprint import Footprint
    from adatsq_pipe.stages.denoiser.inspection import Inspection, SkippedModules

NO_MACS = "multiply-accumulates, shared inputs and calls need a pipeline folder with weights"


@click.command(
    "inspect",
    short_help="Show what would be quantized of a model, and how large it is.",
    epilog=example("inspect scenes/flux-dev"),
)
@click.argument("model", default="", shell_complete=completion.models)
@click.option("--preset", type=click.Choice(PRESETS), help="Settings to assume [default: w4a4].")
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file with settings.")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="TABLE.KEY=VALUE",
    shell_complete=completion.sets,
    help="Change one setting; repeatable.",
)
@click.option("--no-call", is_flag=True, help="Read the modules only; do not load weights or call the denoiser.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@user_errors
def inspect(
    model: str, preset: str | None, file: Path | None, sets: tuple[str, ...], no_call: bool, as_json: bool
) -> None:
    """Show what would be quantized of MODEL, what not and why, and how large a run is.

    MODEL is a pipeline folder, org/name of the hub, a built-in name, or the folder or config.json of a transformer.
    Of a quantized model it shows the bits of its layers.
    """
    path = configuration.asked_folder(model or None, file, sets)
    if layers := quantized_layers(path):
        packed = encoders.packed_in(path)
        if as_json:
            more = {"text_encoders": packed} if packed else {}
            click.echo(json.dumps({**layers_as_plain(path, layers), **more}, indent=1))
            return
        click.echo(layers_as_text(path, layers))
        for one in packed:
            click.echo(f"{one['name']}: weights alone, {one['bits']} bits in its blocks, {one['layers']} layers")
        return
    bare = _bare_config(path)
    config = configuration.load(
        preset=preset, file=file, sets=sets, model=None if bare else str(model or "") or None, previous=None
    )
    denoisers = [_of_config(bare)] if bare else _of_pipeline(path, config, no_call)
    sized = [(one, _footprint(one, config)) for one in denoisers]
    fits, text_encoders = _memory(path, denoisers, config), encoders.found_in(path)
    if as_json:
        plain: dict[str, object] = {"model": str(path), "denoisers": [as_plain(one, size) for one, size in sized]}
        if fits:
            plain["memory"] = fits.plain()
        if text_encoders:
            plain["text_encoders"] = encoders.as_plain(text_encoders)
        click.echo(json.dumps(plain, indent=1))
        return
    click.echo("\n\n\n".join(text(path, one, size) for one, size in sized))
    if text_encoders:
        click.echo(f"\n{encoders.as_text(text_encoders)}")
    if fits:
        click.echo(f"\n{fits.text()}")


def _bare_config(path: Path) -> Path | None:
    """The config.json at `path` or in it, for a transformer alone; None for pipelines."""
    if path.is_file():
        return path
    inside = path / "config.json"
    return inside if inside.is_file() and not (path / "model_index.json").exists() else None


def _read(path: Path) -> dict[str, object]:
    try:
        return read_json_object(path)
    except ValueError as error:
        raise ConfigError(f"{path} is not a transformer config ({error}); name its config.json") from None


def _of_config(path: Path, component: str = "transformer", pipeline: str = "") -> Inspection:
    from adatsq_pipe.stages.denoiser import inspection  # imports torch

    module = inspection.on_meta(_read(path), path)
    return inspection.walk(module, watched=None, component=component, pipeline=pipeline)


def _of_pipeline(folder: Path, config: RunConfig, no_call: bool) -> list[Inspection]:
    call = config.settings[ModelSettings].call
    brought = config.prompt_arguments(DataSettings)
    support.check_pipeline(folder, prompt_arguments=brought, call=call, configs_suffice=True)
    index = find_pipeline(folder)
    parts, name = support.denoisers(index), str(index["_class_name"])
    if no_call or not weight_shapes(folder):
        return [_of_config(folder / part / "config.json", part, name) for part in parts]
    check_weights(folder, taken=support.components_taken(name))
    check_here(config.settings[ComputeSettings].device, instead="add --no-call or set compute.device=cpu")
    from adatsq_pipe.stages.denoiser import inspection  # imports torch

    compute, extra = config.settings[ComputeSettings], (config.settings[DataSettings].inputs or ({},))[0]
    watched = inspection.watch(
        folder,
        dtype=compute.dtype,
        device=compute.device,
        call=dict(call),
        arguments=arguments_of(lambda digest: config.images[digest], extra, picture_mode(folder)),
        prompt="0" if support.takes_labels(index) else str(config.settings[DataSettings].prompts[0]),
    )
    return [
        inspection.walk(module, watched=seen, component=part, pipeline=name) for part, (module, seen) in watched.items()
    ]


def _footprint(one: Inspection, config: RunConfig) -> Footprint:
    from adatsq_pipe.pipeline.commands.footprint import footprint  # imports torch

    return footprint(
        one.rows,
        parameters=one.parameters,
        recipe=config.settings[Recipe],
        dtype=config.settings[ComputeSettings].dtype,
        captured_rows=config.settings[CaptureSettings].rows,
        steps=one.watched.steps if one.watched else 1,
    )


def _memory(path: Path, inspections: Sequence[Inspection], config: RunConfig) -> memory.MemoryPlan | None:
    """How a run fits on a worker's device; None where the model stays in main memory.

    The size of a denoiser without weight files comes from its layers.
    """
    compute, cluster = config.settings[ComputeSettings], config.cluster
    device = memory.device_bytes(compute.device, cluster.gpu_memory, cluster.device_share)
    if device is None:
        return None
    sizes = stored_sizes(path) if path.is_dir() else {}
    for one in inspections:
        if one.component not in sizes:
            inside = {f"{row.name}.weight": row.in_features * row.out_features for row in one.rows}
            sizes[one.component] = {**inside, "(the rest)": one.parameters - sum(inside.values())}
    return memory.plan(
        sizes,
        denoising=[one.component for one in inspections],
        device=device,
        dtype=compute.dtype,
        rows=[row for one in inspections for row in one.rows] if all(one.watched for one in inspections) else (),
        samples=config.settings[DataSettings].batch,
    )


def as_plain(one: Inspection, size: Footprint) -> dict[str, object]:
    """One denoiser as JSON values: its inspection and the bytes of a run."""
    plain = asdict(one)
    watched = plain.pop("watched")
    loop = {key: watched[key] for key in ("steps", "calls_per_step", "timesteps")} if watched else None
    plain["rows"] = [row.plain() for row in one.rows]
    return {**plain, "loop": loop, "bytes": asdict(size)}


def text(path: Path, one: Inspection, size: Footprint) -> str:
    """One denoiser as text: its inspection and the bytes of a run."""
    watched, argument = one.watched, one.timestep
    where = f"{argument[0]} (argument {argument[1] + 1})" if argument else "the first number after the sample"
    taken = sum(group.parameters for group in one.groups)
    head = [
        ("model", str(path)),
        ("pipeline", f"{one.pipeline}, takes {one.condition}" if one.pipeline else "none: a transformer alone"),
        ("denoiser", f"{one.component}: {one.kind}, {many(one.parameters)} parameters"),
        ("quantized", f"{sum(g.count for g in one.groups)} linears, {100 * taken / one.parameters:.1f} % of them"),
        ("family", one.family or "none: the rules do"),
        ("timestep", where),
        ("calls", f"{watched.calls_per_step} a step, {watched.steps} steps" if watched else NO_MACS),
        ("weights", f"{_bytes(size.weights)} in the compute dtype"),
        ("capture", f"{_bytes(size.captured_per_step)} a step and batch of captions"),
        ("Gram", f"{_bytes(size.gram)} for the widest input"),
        ("result", ", ".join(f"{_bytes(of)} at W{bits}" for bits, of in size.quantized.items())),
    ]
    groups = [
        (g.pattern, f"{g.in_features} x {g.out_features}", str(g.count), many(g.parameters),
         "-" if g.macs is None else many(g.macs), "weights only" if g.kind == "conditioning" else "weights, inputs")
        for g in one.groups
    ]  # fmt: skip
    left = [
        *((r.pattern, r.kind, str(r.count), many(r.parameters), r.why) for r in one.left if r.why != VECTORS),
        *_vectors_line([r for r in one.left if r.why == VECTORS]),
    ]
    parts = [
        aligned(head),
        "quantized\n" + aligned([("layer", "in x out", "count", "parameters", "MACs", "what"), *groups]),
        "left as it is\n" + aligned([("module", "kind", "count", "parameters", "why"), *left]),
    ]
    if one.shared:
        parts.append("fed the same tensor\n" + "\n".join("  " + ", ".join(names) for names in one.shared))
    return "\n\n".join(parts)


def _vectors_line(vectors: list[SkippedModules]) -> list[tuple[str, ...]]:
    """Norms and other vectors in one line: there are many, and they are small."""
    if not vectors:
        return []
    count, parameters = sum(r.count for r in vectors), sum(r.parameters for r in vectors)
    return [("(in the blocks)", "various", str(count), many(parameters), VECTORS)]


def _bytes(count: int) -> str:
    return f"{many(count)}B" if count >= 1000 else f"{count} B"
