"""RunConfig: the settings of a run, from a preset, a TOML file, `--set` and the model folder, checked as a whole.

Every stage brings its own table. A table is accepted or refused as a whole: an unknown key is an error that names the
nearest right one. `[cluster]` says where and how wide; it changes no byte of the result.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator

from adatsq_pipe.pipeline import compute
from adatsq_pipe.pipeline.captions import with_captions
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.hub_cache import expected
from adatsq_pipe.pipeline.hub_download import snapshot
from adatsq_pipe.pipeline.hub_id import hub_id, named_model
from adatsq_pipe.pipeline.toml_tables import merged, parse_set, read_toml
from adatsq_pipe.pipeline.variant_folder import variant_folder
from adatsq_pipe.stages.allocation.points import check_mean_bits
from adatsq_pipe.stages.allocation.trellis import SearchSettings, check_budget
from adatsq_pipe.stages.base import gpus
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
from adatsq_pipe.stages.base.units import shards
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings
from adatsq_pipe.stages.methods._recipe import Recipe, resolve
from adatsq_pipe.stages.scenes.builtin_models import builtin_models
from adatsq_pipe.stages.text.encoders import TextEncoderSettings
from adatsq_pipe.storage.files import read_json_object

PRESETS = ("w4a4", "w3a3")
BUILT_IN = "scenes/flux-dev"
MOST_GPUS = 1_000
"""Of one worker."""


class ClusterSettings(Settings):
    """[cluster] Where and how wide. Changes no byte of the result."""

    table: ClassVar[str] = "cluster"

    executor: Literal["ray", "inline"] = "ray"
    """How units run: on Ray, or one after the other in this process."""
    address: str = Field(default="local", min_length=1)
    """A running Ray cluster, e.g. auto or ray://host:10001; local = start one here."""
    workers: int = Field(default=0, ge=0, le=10_000)
    """0 = one per GPU, or per share of one; on a CPU one per core this process may use."""
    cpus_per_worker: float = Field(default=1.0, gt=0, le=10_000)
    """CPUs that Ray reserves for a worker."""
    gpus: float = Field(default=0.0, ge=0, le=10_000)
    """GPUs of a local Ray; 0 = all that are visible, if compute.device is cuda."""
    gpus_per_worker: float | Literal["auto"] = 0.0
    """Share of a GPU that a worker holds; 0 = a whole one if compute.device is cuda; auto = a whole one until capture's
    survey is done, then the share that the weights and a unit of the next stage need, measured before each stage."""
    gpu_memory: float = Field(default=0.0, ge=0, le=100_000)
    """GB (10^9 bytes) of one GPU; 0 = as it says itself. For gpus_per_worker = auto, and for models that need more than
    a worker has of it: their blocks take turns there."""
    retries: int = Field(default=3, ge=0, le=1_000)
    """How often a unit is tried again after an error, or after its worker died."""

    @property
    def device_share(self) -> float:
        """Of a device, what a worker may count on; with auto as many share it as fit."""
        return 1.0 if self.gpus_per_worker == "auto" else min(1.0, self.gpus_per_worker or 1.0)

    @property
    def shares_host(self) -> bool:
        """Whether several workers may be on one machine."""
        return self.executor == "ray" and self.workers != 1

    @field_validator("gpus_per_worker", mode="before")
    @classmethod
    def _share(cls, value: object) -> object:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value == "auto" or (number and 0 <= value <= MOST_GPUS):  # type: ignore[operator]
            return value
        raise ValueError(f"give the share of a GPU that a worker holds, from 0 to {MOST_GPUS}, or auto")


@cache
def kinds() -> dict[str, type[Settings]]:
    """The type of every table, by its name."""
    ours: list[type[Settings]] = [ModelSettings, DataSettings, ComputeSettings, Recipe]
    ours += [stage.settings for stage in all_stages().values()]
    ours += [TextEncoderSettings, ClusterSettings]
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
    basis: compute.Basis = field(default_factory=compute.Basis)
    """Why device and dtype are what they are."""

    def prompt_arguments(self, *of: type[PromptSettings]) -> set[str]:
        """Names of the pipeline call's arguments that every prompt of these tables (default: both) brings, or that
        [model.call] sets."""
        none: tuple[dict[str, Any], ...] = ({},)
        rows = [row for kind in of or (DataSettings, EvaluateSettings) for row in self.settings[kind].inputs or none]
        each = [{*row.get("images", {}), *row.get("call", {})} for row in rows]
        return set.intersection(*each) | set(self.settings[ModelSettings].call)


def model_folder(model: str, variant: str = "", *, fetch: bool = True, weights: bool = True) -> Path:
    """The folder of a model, by its name or path; empty is the default built-in. ConfigError for unknown names.

    A repository of the hub is downloaded if it is not in the cache, without its weights if these are not wanted;
    without `fetch` its place there is returned. Of a `variant`, it is a folder of links to its files.
    """
    known, name = builtin_models(), model or BUILT_IN
    if name in known:
        return known[name]
    path = Path(model).expanduser()
    if model.startswith("scenes/") and not path.exists():
        raise ConfigError(f"there is no built-in model {model!r}{_nearest(model, known)}")
    folder = path.resolve()
    if hub := named_model(model):
        folder = (snapshot(hub, variant, weights=weights) if fetch else expected(hub)).folder
    return variant_folder(folder, variant) if variant and folder.is_dir() else folder


def asked_folder(model: str | None, file: Path | None, sets: Sequence[str], *, weights: bool = True) -> Path:
    """The folder of the model that these options name, downloaded where it has to be, without weights if these are not
    wanted and it has no variant. Raises ConfigError."""
    _, written = layers(preset=None, file=file, sets=sets, model=model, previous=None)
    asked = merged(*written.values()).get("model", {})
    variant = _variant(asked)
    return model_folder(str(asked.get("path", "")), variant, weights=weights or bool(variant))


def _variant(model: Mapping[str, Any]) -> str:
    """The table's `variant`, checked. Raises ConfigError."""
    parsed = _parsed(ModelSettings, {"variant": model.get("variant", "")})
    assert isinstance(parsed, ModelSettings)
    return parsed.variant


def _pinned(name: str, before: str, variant: str, *, fetch: bool) -> str:
    """A repository of the hub as `org/name@commit`, so that a continued run has the same files; other names stay.

    Where no revision is asked for, the commit of the run so far (`before`) goes on.
    """
    if not name or name in builtin_models() or (hub := named_model(name)) is None:
        return name
    earlier = hub_id(before) if before and not hub.revision else None
    if earlier is not None and earlier.repository == hub.repository:
        hub = earlier
    return (snapshot(hub, variant) if fetch else expected(hub)).name


def preset_tables(name: str) -> dict[str, Any]:
    """The tables of a preset that ships with the package."""
    return tomllib.loads((resources.files("adatsq_pipe.pipeline") / "presets" / f"{name}.toml").read_text("utf-8"))


def load(
    *,
    preset: str | None,
    file: Path | None,
    sets: Sequence[str],
    model: str | None,
    previous: Mapping[str, Any] | None,
    kept: Mapping[str, object] | None = None,
    count_gpus: Callable[[ClusterSettings], int] = lambda cluster: gpus.visible_gpus(),
    fetch: bool = False,
) -> RunConfig:
    """The configuration of a run: the preset, the request of the `previous` run in this directory, the file, the sets.

    A new preset discards the previous request. `kept` and `count_gpus` decide what `auto` stands for in [compute]: the
    table as the run directory recorded it, and the GPUs that workers have. `fetch` lets a model of the hub be
    downloaded. Raises ConfigError.
    """
    name, written = layers(preset=preset, file=file, sets=sets, model=model, previous=previous)
    tables = merged(*written.values())
    refuse_unknown(tables)
    for table in ("data", "evaluate"):
        if file_of := tables.get(table, {}).get("prompts_file"):
            tables = merged(tables, {table: {"prompts_file": str(Path(str(file_of)).expanduser().resolve())}})
    if clip := tables.get("evaluate", {}).get("clip"):
        tables = merged(tables, {"evaluate": {"clip": str(Path(str(clip)).expanduser().resolve())}})
    if path := tables.get("model", {}).get("path"):
        before = written["the run's config.toml"].get("model", {}).get("path", "")
        pinned = _pinned(str(path), str(before), _variant(tables["model"]), fetch=fetch)
        tables = merged(tables, {"model": {"path": pinned}})
    request = {"preset": name, "tables": tables}
    return _resolved(merged(preset_tables(name), tables), request, kept or {}, count_gpus)


def layers(
    *, preset: str | None, file: Path | None, sets: Sequence[str], model: str | None, previous: Mapping[str, Any] | None
) -> tuple[str, dict[str, Mapping[str, Any]]]:
    """The name of the preset, and the tables over it by where they come from, each over the ones before it."""
    before = dict(previous or {}) if preset is None else {}
    name = preset or before.get("preset", "w4a4")
    if name not in PRESETS:
        raise ConfigError(f"preset is {name!r}; there are {', '.join(PRESETS)}")
    return name, {
        "the run's config.toml": before.get("tables", {}),
        f"--config {file}": read_toml(file) if file else {},
        "--set": parse_set(sets),
        "--model": {"model": {"path": model}} if model else {},
    }


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


def _resolved(
    tables: Mapping[str, Any],
    request: Mapping[str, object],
    kept: Mapping[str, object],
    count_gpus: Callable[[ClusterSettings], int],
) -> RunConfig:
    name = str(tables.get("model", {}).get("path", ""))
    model = model_folder(name, _variant(tables.get("model", {})), fetch=False)
    filled = merged(tables, {"model": {"path": "" if name == BUILT_IN else name}})
    filled["model"] = merged(sampling(model), filled["model"])
    parsed = RunSettings(_parsed(kind, filled.get(table, {})) for table, kind in kinds().items())
    try:
        check_budget(parsed[SearchSettings], parsed[Recipe].allocation)
        check_mean_bits(parsed)
    except StageError as error:
        raise ConfigError(str(error)) from None
    world, images = parsed[ModelSettings].world, dict[str, Path]()
    for kind in (DataSettings, EvaluateSettings):
        captions, pictures = with_captions(parsed[kind], world)
        images.update(pictures)
        if pictures and "batch" not in filled.get(kind.table, {}):
            captions = captions.model_copy(update={"batch": 1})
        parsed = parsed.replaced(captions)
    _check_batches(parsed)
    cluster = parsed[ClusterSettings]
    chosen, basis = compute.chosen(parsed[ComputeSettings], model, kept, lambda: count_gpus(cluster))
    return RunConfig(
        settings=parsed.replaced(chosen), cluster=cluster, model=model, request=request, images=images, basis=basis
    )


def _check_batches(settings: RunSettings) -> None:
    """Raise ConfigError if the search wants more batches of calibration captions than there are."""
    wanted, data = settings[SearchSettings].batches, settings[DataSettings]
    there = len(shards(len(data.prompts), data.batch))
    if settings[Recipe].allocation in ("trellis", "lagrangian", "bisection") and wanted > there:
        raise ConfigError(
            f"search.batches is {wanted}, and the {len(data.prompts)} calibration captions make {there} of "
            f"{data.batch}; lower search.batches or give more captions"
        )


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
        values = read_json_object(model / "sampling.json")
        return {"call": dict(values["call"]), "world": str(values.get("world", ""))}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f'{model / "sampling.json"} is not {{"call": {{...}}}}; correct or remove it') from None
