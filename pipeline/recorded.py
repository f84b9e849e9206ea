"""A plan from what a run directory has recorded, where the settings or the model's files are not at hand.

Each stage's folder is the newest whose recorded needs are the folders of the stages before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from adatsq_pipe.pipeline.config import RunConfig
from adatsq_pipe.pipeline.plan import Step, context_of, look, stages_of
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.stage import Stage, all_stages
from adatsq_pipe.storage.fingerprint import Plain, digest
from adatsq_pipe.storage.rundir import RunDir


def recorded_plan(config: RunConfig, run: RunDir, *, settings_known: bool) -> tuple[list[Step], Context]:
    """Every stage in order as it was recorded last, and the context with the fingerprints of their folders.

    Without the run's own settings no number of units is expected.
    """
    context, steps = context_of(config, run), list[Step]()
    for stage in stages_of(config):
        identity = _newest(stage, context, run)
        fingerprint = digest(identity) if identity is not None else ""
        context = replace(context, fingerprints={**context.fingerprints, stage.name: fingerprint})
        ready = settings_known and all(step.complete for step in steps if step.stage.name in stage.needs)
        step = look(stage, identity or {"stage": stage.name}, fingerprint, context, run, ready)
        steps.append(replace(step, changed=()))
    return steps, context


def any_recorded(run: RunDir) -> bool:
    """Whether the run directory has recorded what any of its folders is of."""
    return any(run.identities(stage) for stage in all_stages())


def _newest(stage: Stage, context: Context, run: RunDir) -> dict[str, Plain] | None:
    needs = {need: context.fingerprints[need] for need in stage.needs if need in context.fingerprints}
    return next((found for found in run.identities(stage.name) if _known(found.get("needs"), needs) == needs), None)


def _known(recorded: Plain, needs: Mapping[str, str]) -> Plain:
    """Of what is recorded, the needs among those stages: without its settings a run may have had others besides."""
    return {n: of for n, of in recorded.items() if n in needs} if isinstance(recorded, Mapping) else recorded
