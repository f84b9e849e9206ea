"""RunConfig: what a run is asked to do, from a preset, a TOML file, `--set` and the model folder, checked as a whole.

Every stage brings its own table; nothing here names one. Tables are refused whole or taken whole: unknown keys are
errors that name the nearest right one. `[cluster]` says where and how wide, and bears no identity.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import Field, ValidationError, field_validator

from adatsq_pipe.pipeline import prompts
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.settings import ComputeSettings, DataSettings, ModelSettings, Settings
from adatsq_pipe.stages.base.stage import all_stages
from adatsq_pipe.stages.methods._recipe import RecipeSettings, resolve
from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.rundir import RunDir

PRESETS = ("w4a4", "w3a3")
BUILT_IN = "scenes/flux-dev"


class ConfigError(ValueError):
    """The configuration cannot be used; the message gives the key, the value and what was expected."""


class ClusterSettings(Settings):
    """[cluster] Where and how wide. Changes no byte of the result."""

    executor: Literal["ray", "inline"] = "ray"
    address: str = "local"
    """A running Ray cluster, e.g. auto or ray://host:10001; local = start one here."""
    workers: int = Field(default=0, ge=0)
    """0 = one per CPU this process may use (or per share of a GPU)."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    gpus: float = Field(default=0.0, ge=0)
    """GPUs of a local Ray."""
    gpus_per_worker: float | Literal["auto"] = 0.0
    """Share of a GPU that a worker holds; auto = as measured: a whole one until capture's survey is done, then what the
    weights and a unit take of the GPU's memory, looked at anew before each stage."""
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
    def _share(cls, given: object) -> object:
        number = isinstance(given, int | float) and not isinstance(given, bool)
        if given == "auto" or (number and given >= 0):  # type: ignore[operator]
            return given
        raise ValueError("give the share of a GPU that a worker holds, 0 or more, or auto")


@cache
def kinds() -> dict[str, type[Settings]]:
    """The tables there are."""
    return {
        "model": ModelSettings,
        "data": DataSettings,
        "compute": ComputeSettings,
        "recipe": RecipeSettings,
        **{name: stage.settings for name, stage in all_stages().items()},
        "cluster": ClusterSettings,
    }


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Checked tables as plain values, the model folder, and what the user asked for (`asked`), to be kept."""

    tables: Mapping[str, Mapping[str, Any]]
    model: Path
    asked: Mapping[str, Any]
    images: Mapping[str, Path]
    """Pictures that come with prompts, by digest: where they are on this machine."""

    def given(self, *of: str) -> set[str]:
        """Arguments of the pipeline's call that all prompts of the tables `of` (data and evaluate) come with, or
        [model.call] has."""
        none: list[dict[str, Any]] = [{}]
        rows = [row for table in of or ("data", "evaluate") for row in self.tables[table].get("inputs") or none]
        each = [{*row.get("images", {}), *row.get("call", {})} for row in rows]
        return set.intersection(*each) | set(self.tables["model"]["call"])

    @property
    def cluster(self) -> ClusterSettings:
        return ClusterSettings.model_validate(self.tables["cluster"])


def model_folder(given: str) -> Path:
    """The folder that a model's name or path means; empty is the default built-in. ConfigError for unknown names."""
    from adatsq_pipe.stages.scenes.builtin_models import builtin_models

    known, name = builtin_models(), given or BUILT_IN
    if name in known:
        return known[name]
    path = Path(given).expanduser()
    if given.startswith("scenes/") and not path.exists():
        raise ConfigError(f"there is no built-in model {given!r}{_nearest(given, known)}")
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
            raise ConfigError(f"--set takes table.key=value, e.g. search.budget=3.6; given {text!r}")
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
    kept: Mapping[str, Any] | None,
) -> RunConfig:
    """The configuration of a run: the preset, what an earlier `run` in this directory `kept`, the file, the sets.

    A new preset starts from scratch; else what was kept is gone on with. Raises ConfigError.
    """
    before = dict(kept or {}) if preset is None else {}
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
    asked = {"preset": name, "tables": tables}
    return _resolved(merged(preset_tables(name), tables), asked)


def refuse_unknown(tables: Mapping[str, Any]) -> None:
    """Raise ConfigError for a table or a key that there is not."""
    for table, values in tables.items():
        if table not in kinds():
            raise ConfigError(f"there is no table [{table}]{_nearest(table, kinds())}")
        if not isinstance(values, Mapping):
            raise ConfigError(f"{table} is a table, not {values!r}; write {table}.<key>")
        for key in values:
            if key not in kinds()[table].model_fields:
                raise ConfigError(f"[{table}] has no key {key!r}{_nearest(key, kinds()[table].model_fields)}")


def _nearest(word: str, words: Any) -> str:
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(words))}"


def _resolved(tables: Mapping[str, Any], asked: Mapping[str, Any]) -> RunConfig:
    given = str(tables.get("model", {}).get("path", ""))
    model = model_folder(given)
    filled = merged(tables, {"model": {"path": "" if given == BUILT_IN else given}})
    filled["model"] = merged(sampling(model), filled["model"])
    checked = {name: _checked(name, kind, filled.get(name, {})) for name, kind in kinds().items()}
    world, images = checked["model"]["world"], dict[str, Path]()
    for table, held_out in (("data", False), ("evaluate", True)):
        brought = _take_file(checked[table], table)
        images.update(brought)
        if brought and "batch" not in filled.get(table, {}):
            checked[table]["batch"] = 1
        if not checked[table]["prompts"]:
            checked[table]["prompts"] = list(_captions(checked[table], world, held_out))
        elif world:
            in_the_world(checked[table]["prompts"], world, f"{table}.prompts")
        del checked[table]["count"], checked[table]["prompts_file"]
        if not checked[table]["inputs"]:
            del checked[table]["inputs"]
    try:
        resolve(checked["recipe"])
    except (StageError, ValidationError) as error:
        raise ConfigError(_first_line(error, "recipe")) from None
    return RunConfig(tables=checked, model=model, asked=asked, images=images)


def _take_file(values: dict[str, Any], table: str) -> Mapping[str, Path]:
    """Put the prompts of the table's file, if one is named, in the place of those given. The pictures it names."""
    file = values["prompts_file"]
    if values["inputs"]:
        raise ConfigError(f"{table}.inputs comes from a manifest; name it: --set {table}.prompts_file=FILE.jsonl")
    if file and values["prompts"]:
        raise ConfigError(f"{table}.prompts and {table}.prompts_file are both given; add --set {table}.prompts=[]")
    if file:
        try:
            found = prompts.read(Path(file))
        except ValueError as error:
            raise ConfigError(f"{table}.prompts_file: {error}") from None
        values["prompts"], values["inputs"] = found.prompts, found.inputs
        return found.images
    return {}


def _checked(name: str, kind: type[Settings], values: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return kind.model_validate(values).model_dump(mode="json")
    except ValidationError as error:
        raise ConfigError(_first_line(error, name)) from None


def _first_line(error: Exception, table: str) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    where = ".".join(str(part) for part in (table, *first["loc"]))
    reason = first["msg"].removeprefix("Value error, ")
    return f"{where}: {reason}" + ("" if isinstance(first["input"], Mapping) else f" (given {first['input']!r})")


def sampling(model: Path) -> dict[str, Any]:
    """What a model folder says of itself in sampling.json, if it does: how to call it, and what world it draws."""
    try:
        said = json.loads((model / "sampling.json").read_text())
        return {"call": dict(said["call"]), "world": str(said.get("world", ""))}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f'{model / "sampling.json"} is not {{"call": {{...}}}}; mend or remove it') from None


def in_the_world(prompts: Sequence[str], world: str, where: str) -> None:
    """Refuse captions (or labels) that the built-in world has no pictures of."""
    from adatsq_pipe.stages.scenes.world.prompts import parse_prompt

    for prompt in prompts:
        try:
            parse_prompt(prompt, world)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None


def _captions(table: Mapping[str, Any], world: str, held_out: bool) -> Sequence[str]:
    if world:
        from adatsq_pipe.stages.scenes.world import prompts

        split = "held_out" if held_out else "train"
        return prompts.draw_prompts(table["count"], world=world, split=split, seed=table["seed"])
    lines = (resources.files("adatsq_pipe.pipeline") / "presets" / "captions.txt").read_text().splitlines()
    return lines[1::2][: table["count"]] if held_out else lines[::2][: table["count"]]


def kept_config(run: Path) -> dict[str, Any] | None:
    """What an earlier `run` in this directory was asked for; None if there was none."""
    path = run / "config.toml"
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        return None
    except tomllib.TOMLDecodeError as error:
        raise StorageError(f"{path} is not TOML ({error}); mend it, or give --preset to start from one") from None


def keep_config(run: RunDir, config: RunConfig) -> None:
    """Keep what was asked for, so that `run`, `status` and `why` need not be told again."""
    text = tomli_w.dumps(config.asked)
    path = run.path / "config.toml"
    if not path.exists() or path.read_text() != text:
        run.write("config.toml", text)
