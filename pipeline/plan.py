"""What a run would do, from files alone: each stage's fingerprint, what of it is done, and why the rest is not."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from adatsq_pipe.pipeline import finished
from adatsq_pipe.pipeline.config import RunConfig
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.run_settings import ModelRef
from adatsq_pipe.stages.base.stage import Stage, all_stages
from adatsq_pipe.stages.evaluation import perceptual
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings
from adatsq_pipe.stages.text import effect, text_encoder
from adatsq_pipe.stages.text.encoders import TextEncoderSettings
from adatsq_pipe.storage.errors import DamagedUnit
from adatsq_pipe.storage.failures import Failure
from adatsq_pipe.storage.fingerprint import Plain, differences, digest, folder_digest
from adatsq_pipe.storage.manifest import COMPLETE, Manifest
from adatsq_pipe.storage.model_files import loaded_files
from adatsq_pipe.storage.rundir import RunDir
from adatsq_pipe.storage.seen import sights


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage of a plan. `damaged` names units whose marker or bytes are not what was vouched for."""

    stage: Stage
    fingerprint: str
    identity: Mapping[str, Plain]
    complete: bool
    done: int
    expected: int | None
    damaged: tuple[tuple[str, str], ...]
    changed: tuple[tuple[str, Plain, Plain], ...]
    failures: tuple[Failure, ...]
    """Of the units whose last try failed."""
    size: int
    """Bytes that the sound units vouch for; 0 in a store, whose markers are not read."""
    memory: int = 0
    """Most bytes of main memory that a worker's process held, mapped files included; 0 where it is not known."""

    @property
    def failed(self) -> dict[str, str]:
        """Units whose last try failed, with the error."""
        return {failure.unit: failure.error for failure in self.failures}

    @property
    def state(self) -> str:
        if self.complete:
            return "done"
        if self.damaged:
            return "damaged"
        if self.done:
            return "partial"
        return "stale" if self.changed else "missing"


def context_of(config: RunConfig, run: RunDir, model_digest: str = "") -> Context:
    """The context without fingerprints."""
    return Context(
        settings=config.settings,
        run=run.uri,
        model=ModelRef(path=config.model, digest=model_digest),
        gpu_memory=config.cluster.gpu_memory,
        device_share=config.cluster.device_share,
        shares_host=config.cluster.shares_host,
    )


def stages_of(config: RunConfig) -> list[Stage]:
    """The stages of a run in order: all, those of text encoders where these are quantized, and that of the optional
    metrics where some are asked for."""
    stages = dict(all_stages())
    last = [perceptual.STAGE] if config.settings[EvaluateSettings].metrics else []
    if config.settings[TextEncoderSettings].on:
        before = list(stages).index("assemble")
        ordered = list(stages.values())
        return [*ordered[:before], text_encoder.STAGE, *ordered[before:], effect.STAGE, *last]
    return [*stages.values(), *last]


def with_optional(config: RunConfig, stages: Sequence[str]) -> list[str]:
    """These stages, and those that the settings ask for beside them: quantized text encoders come with assemble, their
    effect and the optional metrics with evaluate."""
    names = {stage.name for stage in stages_of(config)}
    beside = {text_encoder.STAGE.name: "assemble", effect.STAGE.name: "evaluate", perceptual.STAGE.name: "evaluate"}
    return [*stages, *(name for name, of in beside.items() if name in names and of in stages and name not in stages)]


def plan(config: RunConfig, run: RunDir, extra: Sequence[Stage] = ()) -> tuple[list[Step], Context]:
    """Every stage in order, then those of `extra`, and the context that workers get."""
    context = context_of(config, run, folder_digest(config.model, loaded_files(config.model), run.digest_cache))
    steps: list[Step] = []
    for stage in (*stages_of(config), *extra):
        model = _clip_digest(config, run) if stage is perceptual.STAGE else context.model.digest
        needs = {step.stage.name: step.fingerprint for step in steps if step.stage.name in stage.needs}
        identity: dict[str, Plain] = {
            "stage": stage.name,
            "version": stage.version,
            "reads": stage.reads(config.settings, model),
            "needs": needs,
        }
        fingerprint = digest(identity)
        context = replace(context, fingerprints={**context.fingerprints, stage.name: fingerprint})
        ready = all(step.complete for step in steps if step.stage.name in stage.needs)
        steps.append(look(stage, identity, fingerprint, context, run, ready))
    return steps, context


def _clip_digest(config: RunConfig, run: RunDir) -> str:
    """The digest of the CLIP model's files, "" where none is asked for; of a folder that is gone, that of before.

    Raises ConfigError if there is neither.
    """
    asked = config.settings[EvaluateSettings]
    if "clip" not in asked.metrics:
        return ""
    folder = Path(asked.clip)
    if asked.clip and folder.is_dir():
        return folder_digest(folder, perceptual.clip_files(folder), run.digest_cache.with_name("clip_files.json"))
    for identity in run.identities(perceptual.STAGE.name):
        if isinstance(reads := identity.get("reads"), Mapping) and reads.get("clip"):
            return str(reads["clip"])
    raise ConfigError(f"evaluate.clip: there is no folder {asked.clip!r}; name it, or leave clip out of the metrics")


def look(
    stage: Stage, identity: Mapping[str, Plain], fingerprint: str, context: Context, run: RunDir, ready: bool
) -> Step:
    """A stage as its folder of that fingerprint shows it. `ready`: the stages that it needs are done."""
    manifest = run.manifest(stage.name, fingerprint)
    (units, marked), noted = sights(manifest), manifest.notes.all()
    wrong = {unit: noted.get(unit, sight.what) for unit, sight in units.items()}
    damaged = tuple((unit, what) for unit, what in wrong.items() if what)
    sound = [sight for unit, sight in units.items() if not wrong[unit]]
    others = [old for old in run.identities(stage.name) if old != dict(identity)]
    changed = differences(others[0], dict(identity)) if others and not units else []
    return Step(
        stage=stage,
        fingerprint=fingerprint,
        identity=identity,
        complete=marked and not damaged,
        done=len(sound),
        expected=_expected(stage, context) if ready else None,
        damaged=damaged,
        changed=tuple(c for c in changed if not c[0].startswith("needs.")) or tuple(changed),
        failures=tuple(failure for failure in manifest.last_failures() if failure.error),
        size=sum(sight.size for sight in sound),
        memory=max((sight.memory for sight in sound), default=0),
    )


def _expected(stage: Stage, context: Context) -> int | None:
    try:
        return stage.expected(context)
    except DamagedUnit:
        return None


def choose(text: str) -> list[str]:
    """Stage names of `--stages`: all, a list a,b or a range a..c. Raises ConfigError."""
    names = list(all_stages())
    chosen: list[str] = []
    for part in (p.strip() for p in text.split(",")):
        first, dots, last = part.partition("..")
        if part == "all":
            chosen += names
            continue
        for name in (first, last) if dots else (first,):
            if name not in names:
                raise ConfigError(f"--stages: there is no stage {name!r}; there are {', '.join(names)}")
        span = names[names.index(first) : names.index(last) + 1] if dots else [first]
        if not span:
            raise ConfigError(f"--stages: {first} comes after {last}; write {last}..{first}")
        chosen += span
    return [name for name in names if name in chosen]


def verify(run: RunDir) -> tuple[int, list[tuple[str, str, str]]]:
    """Hash everything that the run vouches for: (units checked, (stage, unit, what is wrong) of the bad).

    What is found is kept, so that the next run does it again. Raises OSError for a folder that may not be read.
    """
    for _ in os.walk(run.path, onerror=_refuse):
        """A folder that may not be read would be passed over."""
    checked, wrong = finished.verify(run)
    for manifest in run.manifests():
        noted = manifest.notes.all()
        for unit in manifest.vouched():
            checked += unit != COMPLETE
            if what := _altered(manifest, unit):
                wrong.append((manifest.stage, unit, what))
            if what == noted.get(unit, ""):
                continue
            with suppress(OSError):  # a run directory that cannot be written is verified too
                if what:
                    manifest.notes.add(unit, what)
                else:
                    manifest.notes.remove(unit)
    wrong += [("given", name, "its file does not have the digest in its name") for name in run.damaged_images()]
    return checked, wrong


def _refuse(error: OSError) -> NoReturn:
    raise error


def _altered(manifest: Manifest, unit: str) -> str:
    """What is wrong with the unit's marker or files; "" if nothing is."""
    try:
        manifest.verify(unit)
    except DamagedUnit as error:
        return error.what
    except KeyError:
        return "its marker is missing, and the stage is marked finished"
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    return ""


def as_json(steps: list[Step]) -> list[dict[str, Plain]]:
    """A plan as plain values, for `status --json` and scripts."""
    return [
        {
            "stage": step.stage.name,
            "state": step.state,
            "fingerprint": step.fingerprint,
            "units": step.done,
            "expected": step.expected,
            "bytes": step.size,
            "memory": step.memory,
            "damaged": [{"unit": unit, "what": what} for unit, what in step.damaged],
            "failed": dict(step.failed),
            "changed": changes(step),
        }
        for step in steps
    ]


def changes(step: Step) -> list[dict[str, Plain]]:
    """The fields that make a stage stale, as plain values."""
    return [{"field": field, "old": old, "new": new} for field, old, new in step.changed]
