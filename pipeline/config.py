"""RunConfig: the settings of a run, from a preset, a TOML file, `--set` and the model folder, checked as a whole.

Every stage brings its own table. A table is accepted or refused as a whole: an unknown key is an error that names the
nearest right one. `[cluster]` says where and how wide; it changes no byte of the result.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

import tomli_w
from pydantic import Field, ValidationError, field_validator

from adatsq_pipe.pipeline import prompts
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.run_settings import RunSettings
from adatsq_pipe.stages.base.settings import (
    ComputeSettings,
    DataSettings,
    ModelSettings,
    PromptSettings,
    Settings,
    first_error,
)
from adatsq_pipe.stages.base.stage import all_stages
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings
from adatsq_pipe.stages.methods._recipe import Recipe, resolve
from adatsq_pipe.stages.scenes.builtin_models import builtin_models
from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.rundir import RunDir

PRESETS = ("w4a4", "w3a3")
BUILT_IN = "scenes/flux-dev"


class ConfigError(ValueError):
    """The configuration cannot be used; the message gives the key, the value and what was expected."""


class ClusterSettings(Settings):
    """[cluster] Where and how wide. Changes no byte of the result."""

    table: ClassVar[str] = "cluster"

    executor: Literal["ray", "inline"] = "ray"
    """How units run: on Ray, or one after the other in this process."""
    address: str = "local"
    """A running Ray cluster, e.g. auto or ray://host:10001; local = start one here."""
    workers: int = Field(default=0, ge=0)
    """0 = one per CPU this process may use (or per share of a GPU)."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    """CPUs that Ray reserves for a worker."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs of a local Ray."""
    gpus_per_worker: float | Literal["auto"] = 0.0
    """Share of a GPU that a worker holds; auto = a whole one until capture's survey is done, then the share
    that the weights and a unit of the next stage need, measured before each stage."""
    gpu_memory: float = Field(default=0.0, ge=0)
    """GB (10^9 bytes) of one GPU; 0 = as it says itself. For gpus_per_worker = auto, and for models that need more than
    a worker has of it: their blocks take turns there."""
    retries: int = Field(default=3, ge=0)
    """How often a unit is tried again after an error, or after its worker died."""

    @property
    def device_share(self) -> float:
        """Of a device, what a worker may count on; with auto as many share it as fit."""
        return 1.0 if self.gpus_per_worker == "auto" else min(1.0, self.gpus_per_worker or 1.0)

    @field_validator("gpus_per_worker", mode="before")
    @classmethod
    def _share(cls, value: object) -> object:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value == "auto" or (number and value >= 0):  # type: ignore[operator]
            return value
        raise ValueError("give the share of a GPU that a worker holds, 0 or more, or auto")


@cache
def kinds() -> dict[str, type[Settings]]:
    """The type of every table, by its name."""
    ours: list[type[Settings]] = [ModelSettings, DataSettings, ComputeSettings, Recipe]
    ours += [stage.settings for stage in all_stages().values()]
    ours.append(ClusterSettings)
    return {kind.table: kind for kind in ours}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of a run, parsed once; where it runs (`cluster`); and the user's own part of them (`request`)."""

    settings: RunSettings
    cluster: ClusterSettings
    model: Path
    """Folder of the full-precision pipeline."""
    request: Mapping[str, object]
    """What the user wrote: `preset`, the name, and `tables`, the settings on top of it. config.toml holds this."""
    images: Mapping[str, Path]
    """Pictures that come with prompts, by digest: where they are on this machine."""

    def prompt_arguments(self, *of: type[PromptSettings]) -> set[str]:
        """Names of the pipeline call's arguments that every prompt of these tables (default: both) brings, or that
        [model.call] sets."""
        none: tuple[dict[str, Any], ...] = ({},)
        rows = [row for kind in of or (DataSettings, EvaluateSettings) for row in self.settings[kind].inputs or none]
        each = [{*row.get("images", {}), *row.get("call", {})} for row in rows]
        return set.intersection(*each) | set(self.settings[ModelSettings].call)


def model_folder(model: str) -> Path:
    """The folder of a model, by its name or path; empty is the default built-in. ConfigError for unknown names."""
    known, name = builtin_models(), model or BUILT_IN
    if name in known:
        return known[name]
    path = Path(model).expanduser()
    if model.startswith("scenes/") and not path.exists():
        raise ConfigError(f"there is no built-in model {model!r}{_nearest(model, known)}")
    return path.resolve()


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Tables laid over each other; within [model.call] single keys, else whole values."""
    out: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
            out[key] = merged(out[key], value) if both else value
    return out


def parse_set(texts: Sequence[str]) -> dict[str, Any]:
    """`--set table.key=value` options as tables. Values are TOML; a bare word is text."""
    tables: dict[str, Any] = {}
    for text in texts:
        path, sign, value = text.partition("=")
        keys = path.strip().split(".")
        if not sign or len(keys) < 2:
            raise ConfigError(f"--set takes table.key=value, e.g. search.budget=3.6; got {text!r}")
        try:
            parsed = tomllib.loads(f"x = {value}")["x"]
        except tomllib.TOMLDecodeError:
            parsed = value
        for key in reversed(keys):
            parsed = {key: parsed}
        tables = merged(tables, parsed)
    return tables


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"--config {path}: there is no such file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def preset_tables(name: str) -> dict[str, Any]:
    """The tables of a preset that ships with the package."""
    return tomllib.loads((resources.files("adatsq_pipe.pipeline") / "presets" / f"{name}.toml").read_text())


def load(
    *,
    preset: str | None,
    file: Path | None,
    sets: Sequence[str],
    model: str | None,
    previous: Mapping[str, Any] | None,
) -> RunConfig:
    """The configuration of a run: the preset, the request of the `previous` run in this directory, the file, the sets.

    A new preset discards the previous request. Raises ConfigError.
    """
    before = dict(previous or {}) if preset is None else {}
    name = preset or before.get("preset", "w4a4")
    if name not in PRESETS:
        raise ConfigError(f"preset is {name!r}; there are {', '.join(PRESETS)}")
    tables = merged(
        before.get("tables", {}),
        read_toml(file) if file else {},
        parse_set(sets),
        {"model": {"path": model}} if model else {},
    )
    refuse_unknown(tables)
    for table in ("data", "evaluate"):
        if file_of := tables.get(table, {}).get("prompts_file"):
            tables = merged(tables, {table: {"prompts_file": str(Path(str(file_of)).expanduser().resolve())}})
    request = {"preset": name, "tables": tables}
    return _resolved(merged(preset_tables(name), tables), request)


def refuse_unknown(tables: Mapping[str, object]) -> None:
    """Raise ConfigError for an unknown table or key."""
    for table, values in tables.items():
        if table not in kinds():
            raise ConfigError(f"there is no table [{table}]{_nearest(table, kinds())}")
        if not isinstance(values, Mapping):
            raise ConfigError(f"{table} is a table, not {values!r}; write {table}.<key>")
        for key in values:
            if key not in kinds()[table].model_fields:
                raise ConfigError(f"[{table}] has no key {key!r}{_nearest(key, kinds()[table].model_fields)}")


def _nearest(word: str, words: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(words))}"


def _resolved(tables: Mapping[str, Any], request: Mapping[str, object]) -> RunConfig:
    name = str(tables.get("model", {}).get("path", ""))
    model = model_folder(name)
    filled = merged(tables, {"model": {"path": "" if name == BUILT_IN else name}})
    filled["model"] = merged(sampling(model), filled["model"])
    parsed = RunSettings(_parsed(kind, filled.get(table, {})) for table, kind in kinds().items())
    world, images = parsed[ModelSettings].world, dict[str, Path]()
    for kind in (DataSettings, EvaluateSettings):
        captions, pictures = _with_captions(parsed[kind], world)
        images.update(pictures)
        if pictures and "batch" not in filled.get(kind.table, {}):
            captions = captions.model_copy(update={"batch": 1})
        parsed = parsed.replaced(captions)
    return RunConfig(settings=parsed, cluster=parsed[ClusterSettings], model=model, request=request, images=images)


def _with_captions(table: PromptSettings, world: str) -> tuple[PromptSettings, Mapping[str, Path]]:
    """The table with its captions: its own, those of its file, or built-in ones. And the pictures that a file names."""
    name = table.table
    if table.inputs:
        raise ConfigError(f"{name}.inputs comes from a manifest; name it: --set {name}.prompts_file=FILE.jsonl")
    if table.prompts_file and table.prompts:
        raise ConfigError(f"{name}.prompts and {name}.prompts_file are both set; add --set {name}.prompts=[]")
    images: Mapping[str, Path] = {}
    if table.prompts_file:
        try:
            manifest = prompts.read(Path(table.prompts_file))
        except ValueError as error:
            raise ConfigError(f"{name}.prompts_file: {error}") from None
        images = manifest.images
        table = table.model_copy(update={"prompts": tuple(manifest.prompts), "inputs": tuple(manifest.inputs)})
    if not table.prompts:
        return table.model_copy(update={"prompts": tuple(_captions(table, world))}), images
    if world:
        in_the_world(table.prompts, world, f"{name}.prompts")
    return table, images


def _parsed(kind: type[Settings], values: Mapping[str, object]) -> Settings:
    try:
        return resolve(values) if kind is Recipe else kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(first_error(error, kind.table)) from None
    except StageError as error:
        raise ConfigError(str(error)) from None


def sampling(model: Path) -> dict[str, Any]:
    """The model folder's sampling.json: the arguments of its call, and the world it draws. Empty without that file."""
    try:
        values = json.loads((model / "sampling.json").read_text())
        return {"call": dict(values["call"]), "world": str(values.get("world", ""))}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f'{model / "sampling.json"} is not {{"call": {{...}}}}; correct or remove it') from None


def in_the_world(prompts: Sequence[str], world: str, where: str) -> None:
    """Refuse captions (or labels) that the built-in world has no pictures of."""
    from adatsq_pipe.stages.scenes.world.prompts import parse_prompt  # imports numpy, for built-in models only

    for prompt in prompts:
        try:
            parse_prompt(prompt, world)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None


def _captions(table: PromptSettings, world: str) -> Sequence[str]:
    """Built-in captions; those of [evaluate] are held out."""
    held_out = isinstance(table, EvaluateSettings)
    if world:
        from adatsq_pipe.stages.scenes.world import prompts  # imports numpy, for built-in models only

        split = "held_out" if held_out else "train"
        return prompts.draw_prompts(table.count, world=world, split=split, seed=table.seed)
    lines = (resources.files("adatsq_pipe.pipeline") / "presets" / "captions.txt").read_text().splitlines()
    return lines[1 if held_out else 0 :: 2][: table.count]


def read_request(run: Path) -> dict[str, Any] | None:
    """The request of the previous run in this directory; None if there was none."""
    path = run / "config.toml"
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        return None
    except tomllib.TOMLDecodeError as error:
        raise StorageError(f"{path} is not TOML ({error}); correct it, or give --preset to start from one") from None


def write_request(run: RunDir, config: RunConfig) -> None:
    """Store the request in the run directory, so that later commands start from it."""
    text = tomli_w.dumps(config.request)
    path = run.path / "config.toml"
    if not path.exists() or path.read_text() != text:
        run.write("config.toml", text)
