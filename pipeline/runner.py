"""Running a plan: which stages, in which order, on which executor, and what happens when a unit is damaged.

The executor is made when the first unit is missing, and not before: a run with nothing to do starts no Ray.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from adatsq_pipe.cluster import loopback
from adatsq_pipe.cluster.inline_executor import InlineExecutor
from adatsq_pipe.cluster.resources import Resources
from adatsq_pipe.cluster.worker_template import WorkerTemplate
from adatsq_pipe.pipeline import captions, devices, placement
from adatsq_pipe.pipeline.beside import spare_units
from adatsq_pipe.pipeline.config import RunConfig
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.plan import Step, plan, stages_of, with_optional
from adatsq_pipe.pipeline.plots.ahead import PlotsAhead
from adatsq_pipe.stages.architecture import memory
from adatsq_pipe.stages.architecture.support import CONVOLUTION, RAW, TABLE
from adatsq_pipe.stages.base.context import Context, Executor, Report, WorkerRef
from adatsq_pipe.stages.base.settings import ComputeSettings, DataSettings
from adatsq_pipe.stages.base.stage import Stage
from adatsq_pipe.stages.base.units import complete
from adatsq_pipe.stages.calibration.survey import left_of, survey_of
from adatsq_pipe.stages.evaluation import rehearsal
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings
from adatsq_pipe.storage.cast_copy import cast_bytes
from adatsq_pipe.storage.errors import DamagedUnit, StorageError
from adatsq_pipe.storage.fingerprint import Plain, digest
from adatsq_pipe.storage.rundir import RunDir

REPAIRS = 8
NAMED = 4
"""Kinds of layers left alone that are named on the screen; the report has all."""
SEARCH_MODULES = ("adatsq_pipe.stages.allocation.search", "adatsq_pipe.storage.tables", "zarr")
"""Modules that a search needs. The process that runs it imports them beforehand, so that no worker waits for them."""

WORKER_MODULES = (
    "adatsq_pipe.stages.evaluation.rehearsal_worker",
    "adatsq_pipe.stages.calibration.capture_worker",
    "adatsq_pipe.stages.calibration.fisher_worker",
)
"""Modules that workers need whatever the recipe and the model. Copies of a process that has imported them begin so."""


class Screen(Protocol):
    """Where progress is shown."""

    def stage(self, name: str) -> AbstractContextManager[Report]:
        """Progress of one stage."""
        ...

    def say(self, line: str) -> None: ...


class RunExecutor(Executor, Protocol):
    """An executor of a whole run. `stop` takes effect between units; `close` frees the workers. Workers that a stream
    leaves idle may do the tasks that were offered last."""

    def offer(self, worker: WorkerRef, context: Context, keys: Sequence[str]) -> None: ...

    def stop(self) -> None: ...

    def close(self) -> None: ...


@dataclass
class Executors:
    """The run's executor, made on first use. `stop` may be called before, during and after that."""

    config: RunConfig
    run: RunDir
    on_made: Callable[[], object] = lambda: None
    """Called when the executor has been made: Ray takes over signal handlers, for one."""
    made: RunExecutor | None = None
    stopping: bool = False
    share: float = 0.0
    """Share of a GPU that each worker of the current executor holds."""
    rehearsed: set[str] = field(default_factory=set)
    """Fingerprints of the stages whose calls were rehearsed."""
    device_shown: bool = False
    """Whether the screen showed what the run computes on."""
    memory_line: str = ""
    """The last line that the screen showed of the workers' memory."""
    ahead: PlotsAhead | None = None
    """Plots of the report that are drawn while stages run."""

    def get(self, share: float | None = None) -> RunExecutor:
        """The executor, whose workers hold that share of a GPU each [default: whatever they hold now]; a new one
        is made if they hold another."""
        if self.made is not None and share is not None and share != self.share:
            self.close()
        if self.made is None:
            self.share = share if share is not None else self._fixed()
            self.made = self._make()
            self.on_made()
            if self.stopping:
                self.made.stop()
        return self.made

    def rehearse(self, steps: Sequence[Step], stages: Sequence[str], context: Context, screen: Screen) -> None:
        """Have the pipeline called as those of `stages` that have nothing yet will call it. Raises NotTaken, with what
        the pipeline says. What was rehearsed is not rehearsed again. The first captions are shown before."""
        new = {
            step.fingerprint: rehearsal.TABLES[step.stage.name]
            for step in steps
            if step.stage.name in rehearsal.TABLES and step.stage.name in stages and not step.complete and not step.done
        }
        tables = [table for fingerprint, table in new.items() if fingerprint not in self.rehearsed]
        for table in tables:
            screen.say(captions.shown(context.settings[DataSettings if table == "data" else EvaluateSettings]))
        keys = [f"rehearsal/{table}" for table in tables]
        for _ in self.get().stream(rehearsal.WORKER, context, keys) if keys else ():
            pass
        self.rehearsed |= set(new)

    def _fixed(self) -> float:
        share = self.config.cluster.gpus_per_worker
        return 1.0 if share == "auto" else share

    def _make(self) -> RunExecutor:
        devices.check_device(self.config)
        cluster = self.config.cluster
        if cluster.executor == "inline":
            return InlineExecutor()
        template = None
        if cluster.address == "local":
            loopback.bind()
            if self.config.settings[ComputeSettings].device == "cpu":
                template = WorkerTemplate.start(WORKER_MODULES, cluster.cpus_per_worker)
        from adatsq_pipe.cluster.ray_executor import RayExecutor  # imports Ray, after loopback has set it up

        options = cluster.model_dump(exclude={"executor", "gpus_per_worker", "gpu_memory"})
        resources = Resources(**options, gpus_per_worker=self.share)
        # It passes the search an ActorPool, which has `stream` alone; a search calls nothing else.
        return RayExecutor(resources, digest(self.run.uri)[:12], SEARCH_MODULES, template)  # type: ignore[return-value]

    def stop(self) -> None:
        self.stopping = True
        if self.made is not None:
            self.made.stop()

    def close(self) -> None:
        made, self.made = self.made, None
        if made is not None:
            made.close()

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Close while the body, which needs no executor, does its work."""
        thread = threading.Thread(target=self.close)
        thread.start()
        try:
            yield
        finally:
            thread.join()


def execute(
    config: RunConfig,
    run: RunDir,
    stages: list[str],
    executors: Executors,
    screen: Screen,
    *,
    publish: bool = True,
    extra: Sequence[Stage] = (),
    conclude: Callable[[list[Step], Context], object] = lambda steps, context: None,
) -> tuple[list[Step], Context, bool]:
    """Do what is missing of `stages`. Returns the plan as it then stands, its context, and whether anything ran.

    `publish` points the run directory's `model` to what was assembled. `stages` may name stages of `extra` too, which
    are in no ordinary run; the optional stages come with the others. `conclude` is called when all are done; a unit
    that it finds damaged is done again.
    """
    ran = False
    stages = with_optional(config, stages)
    _withdraw_noted(run, screen)
    for _ in range(REPAIRS):
        try:
            ran = _once(config, run, stages, executors, screen, publish, extra) or ran
            steps, context = plan(config, run, extra)
            conclude(steps, context)
            return steps, context, ran
        except DamagedUnit as error:
            screen.say(f"{error}: it is withdrawn and done again")
            steps, context = plan(config, run, extra)
            if executors.ahead is not None:
                executors.ahead.of(context)
                executors.ahead = None  # it may have drawn what was damaged
            context.manifest(error.stage).withdraw(error.unit)
            stages = [s.stage.name for s in steps if s.stage.name in (*stages, error.stage)]
            ran = True
    raise StorageError(f"units were found damaged {REPAIRS} times in one run; check what holds {run.display()}")


def _once(
    config: RunConfig,
    run: RunDir,
    stages: list[str],
    executors: Executors,
    screen: Screen,
    publish: bool,
    extra: Sequence[Stage],
) -> bool:
    ran, completed = False, set[str]()
    for name in [stage.name for stage in (*stages_of(config), *extra) if stage.name in stages]:
        steps, context = plan(config, run, extra)
        step = next(s for s in steps if s.stage.name == name)
        completed |= {s.stage.name for s in steps if s.complete}
        _withdraw_damaged(step, context, screen)
        if not step.complete:
            planned = {s.stage.name for s in steps}
            lacking = [need for need in step.stage.needs if need in planned and need not in completed]
            if lacking:
                raise ConfigError(
                    f"stage {name} needs {', '.join(lacking)}, which is not done; add it: --stages {lacking[0]}..{name}"
                )
            if name == "assemble" and "evaluate" in stages:
                executors.ahead = PlotsAhead(context)  # the one stage that is a single unit leaves a core idle
            _run_stage(step, steps, stages, context, run, executors, screen)
            ran = True
        if name == "assemble" and publish:
            _publish(context, run)
    return ran


def _withdraw_noted(run: RunDir, screen: Screen) -> None:
    """Withdraw what `verify` found damaged, in the folders of other settings too."""
    for manifest in run.manifests():
        for unit, what in manifest.notes.all().items():
            screen.say(f"unit {unit!r} of stage {manifest.stage} is damaged ({what}): it is done again")
            manifest.withdraw(unit)


def _withdraw_damaged(step: Step, context: Context, screen: Screen) -> None:
    for unit, what in step.damaged:
        screen.say(f"unit {unit!r} of stage {step.stage.name} is damaged ({what}): it is done again")
        context.manifest(step.stage.name).withdraw(unit)


def _run_stage(
    step: Step,
    steps: Sequence[Step],
    stages: Sequence[str],
    context: Context,
    run: RunDir,
    executors: Executors,
    screen: Screen,
) -> None:
    """Do what is missing of the stage `step`, one of `steps`; `stages` are all that are to be done."""
    name = step.stage.name
    run.record_identity(name, step.fingerprint, dict(step.identity))
    if not executors.device_shown:
        executors.device_shown = True
        if line := devices.line(executors.config):
            screen.say(line)
    placed = _placed(name, context, executors.config)
    if placed is not None:
        screen.say(f"{name}: {placed.workers} to a GPU ({placed.record()['basis']})")
    facts = _memory(name, context, executors, screen) | ({"placement": placed.record()} if placed else {})
    executor = executors.get(placed.share if placed else None)
    start = time.perf_counter()
    if name in rehearsal.TABLES:
        executors.rehearse(steps, stages, context, screen)
    if placed is None or placed.share >= 1.0:  # workers that share a GPU are sized for this stage alone
        spare = spare_units(name, steps, stages, context, run)
        executor.offer(spare.worker, context, spare.units)
    try:
        with screen.stage(name) as report:
            step.stage.run(context, executor, report)
    finally:
        wall = round(time.perf_counter() - start, 3)
        if shared := cast_bytes(run.path):
            facts["cast"] = shared
        run.log({"stage": name, "fingerprint": step.fingerprint, "wall": wall, **facts})
    complete(context, name)
    if name == "capture" and (line := _unusual(context)):
        screen.say(line)


def _unusual(context: Context) -> str:
    """In one line what lies in the blocks and is no linear layer, nor a mere vector; "" if there is nothing."""
    left = [row for row in left_of(context) if row["why"] in (CONVOLUTION, TABLE, RAW)]
    if not left:
        return ""
    total = survey_of(context).parameters
    share = 100 * sum(row["parameters"] for row in left) / total
    named = ", ".join(f"{row['count']} {row['kind']} ({row['pattern']})" for row in left[:NAMED])
    more = f" and {len(left) - NAMED} more kinds" if len(left) > NAMED else ""
    return f"left as they are in the blocks, {share:.1f} % of the parameters: {named}{more}; `inspect` says why"


def _memory(stage: str, context: Context, executors: Executors, screen: Screen) -> dict[str, Plain]:
    """Show once, beforehand, whether the model fits on the workers' device; the plan as a fact for the log."""
    if stage not in memory.STAGES:
        return {}
    plan = memory.plan_of(context, memory.surveyed(context))
    if plan is None and context.settings[ComputeSettings].device == "cpu":
        return {}
    line = plan.text() if plan else memory.UNKNOWN
    if executors.memory_line != line and (plan is None or plan.recomputed):
        executors.memory_line = line
        screen.say(line)
    return {"memory": plan.plain() if plan else memory.UNKNOWN}


def _placed(stage: str, context: Context, config: RunConfig) -> placement.Placement | None:
    """How many workers of the stage share a GPU, where that is to be measured. Raises ConfigError."""
    cluster = config.cluster
    if cluster.gpus_per_worker != "auto" or cluster.executor == "inline":
        return None
    size = int(cluster.gpu_memory * 10**9) or memory.gpu_memory()
    if not size:
        raise ConfigError(
            "cluster.gpus_per_worker is auto, and this machine has no GPU to ask for its memory; "
            "set cluster.gpu_memory to the GB that a GPU of the cluster has"
        )
    return placement.place(placement.need_of(context, stage), size)


def _publish(context: Context, run: RunDir) -> None:
    """Point `model` to what was assembled, unless it is there already, or better: with its scores beside it."""
    manifest = context.manifest("assemble")
    if manifest.done("model"):
        folder, assembled = manifest.local_folder("model"), context.fingerprints["assemble"]
        scored = run.published_folder(assembled, context.fingerprints["evaluate"])
        if not run.model.exists() or run.model.resolve() not in (folder.resolve(), scored.resolve()):
            run.publish(folder, assembled)
