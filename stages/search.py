"""Search: which activation bits every layer has at every timestep, under a budget of mean bits.

The trellis of AdaTSQ (sec. 3.3): one level per scheduler step, a few candidate configurations a step, paths scored by
(mean bits, summed error against the full-precision run). A hypothesis is its list of denoiser outputs, so its state at
any step comes from teleporting through the pipeline's own loop. The survivors are re-scored by generating.
Units: `path/<digest>` (one evaluated extension and its outputs), `level/<step>` (what the beam was told),
`rollout/<digest>`, and `front` (the policy, and the whole Pareto front as Parquet).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, ClassVar

from adatsq_pipe.stages import capture, decoupled
from adatsq_pipe.stages.base import (
    Context,
    Executor,
    Report,
    Stage,
    Unit,
    identity,
    unit_of,
)
from adatsq_pipe.stages.methods._recipe import resolve
from adatsq_pipe.stages.trellis import SearchSettings, Trellis, digest_of
from adatsq_pipe.storage.fingerprint import Plain

if TYPE_CHECKING:
    from torch import Tensor

    from adatsq_pipe.stages.denoiser import Call
    from adatsq_pipe.stages.numerics.beam import Beam, Choices
    from adatsq_pipe.stages.numerics.policy import Policy


class Evaluate:
    """The stage's worker: holds the model with its solved weights, extends one path by one step, or rolls one out."""

    stage: ClassVar[str] = "search"
    ahead: ClassVar[int] = 2

    def __init__(self, context: Context) -> None:
        from adatsq_pipe.stages.numerics.policy import uniform
        from adatsq_pipe.stages.solve import load_solved
        from adatsq_pipe.stages.trajectories import calibration_shards, denoiser_of, read_trajectory

        self.context, self.space = context, Trellis(context)
        settings, steps = self.space.settings, self.space.survey["steps"]
        shards = calibration_shards(context)
        self.denoiser = denoiser_of(context, to_change=True)
        layers = load_solved(context, self.denoiser.transformer, uniform(steps, len(self.space.survey["layers"]), 16))
        self.layers = list(layers.values())
        self.trellis = shards[0]
        self.reference = read_trajectory(context, 0)
        self.rollout_shard = 1 if len(shards) > 1 else 0
        self.rollouts = _first(shards[self.rollout_shard], settings.rollout_prompts)
        self._states: list[list[Tensor]] | None = None
        self._outputs: dict[Choices, list[Any]] = {}
        self._arrived: dict[Choices, Any] = {}

    def __call__(self, key: str) -> float:
        kind, _, path = key.partition("/")
        choices = tuple(int(c) for c in path.split("."))
        return self._extend(choices) if kind == "path" else self._roll_out(choices)

    def _set_bits(self, row: tuple[int, ...]) -> None:
        for layer, bits in zip(self.layers, row, strict=True):
            layer.bits = bits
            if layer.shared is not None:
                layer.shared.clear()

    def _reference_states(self) -> list[list[Tensor]]:
        """The full-precision run's latents before every step and at the end."""
        if self._states is None:
            states: dict[int, list[Tensor]] = {}

            def see(j: int, call: Call) -> None:
                states.setdefault(call.step, [x.clone() for x in self.denoiser.state(call)])

            latents, _ = self.denoiser.replay(self.trellis, self.reference.outputs, see=see)
            self._states = [states[t] for t in range(len(states))] + [[latents]]
        return self._states

    def _outputs_of(self, choices: Choices) -> list[Any]:
        """Denoiser outputs of a path: from memory, from the units that computed them, or computed again."""
        import json

        from adatsq_pipe.stages.outputs import rebuild, structure
        from adatsq_pipe.storage import tensors

        if not choices:
            return []
        if choices not in self._outputs:
            if not self.context.manifest("search").done(f"path/{digest_of(choices)}"):
                self._extend(choices)
                return self._outputs[choices]
            before = self._outputs_of(choices[:-1])
            _, folder = self.context.read("search", f"path/{digest_of(choices)}")
            stored = tensors.read_scratch(folder)
            shape = json.loads(json.dumps(structure(self.reference.outputs[0])))
            calls = self.space.survey["calls"].count(len(choices) - 1)
            parts = [stored[f"output{i}"] for i in range(len(stored))]
            step = [
                rebuild(shape, iter([part[j].to(self.reference.latents.device) for part in parts]))
                for j in range(calls)
            ]
            self._outputs[choices] = before + step
        return self._outputs[choices]

    def _extend(self, choices: Choices) -> float:
        import torch

        from adatsq_pipe.stages.denoiser import Call
        from adatsq_pipe.stages.outputs import leaves
        from adatsq_pipe.storage import tensors

        step = len(choices) - 1
        for kept in (self._outputs, self._arrived):
            for old in [path for path in kept if len(path) < step]:
                del kept[old]
        with unit_of(self.context, self.stage, f"path/{digest_of(choices)}") as unit, torch.no_grad():
            self._set_bits(self.space.whole_row(step, self.space.bits[step][choices[-1]]))
            outputs = list(self._outputs_of(choices[:-1]))
            calls = self.space.survey["calls"].count(step)
            arrived = self._arrival(choices[:-1], outputs)
            for _ in range(calls):
                assert isinstance(arrived, Call)
                with unit.timed("model"):
                    outputs.append(self.denoiser.run(arrived))
                arrived = self.denoiser.teleport(self.trellis, outputs)
            self._arrived[choices] = arrived
            error = self._error(step, outputs, calls, arrived)
            flat = [leaves(output) for output in outputs[-calls:]]
            stacked = {f"output{i}": torch.stack([call[i] for call in flat]) for i in range(len(flat[0]))}
            tensors.write_scratch(unit.folder, stacked)
            unit.value = {"choices": list(choices), "error": error, "calls": calls}
        self._outputs[choices] = outputs
        return error

    def _arrival(self, choices: Choices, outputs: list[Any]) -> Any:
        """Where a path's outputs lead: the next call's inputs, or the final latents."""
        if choices not in self._arrived:
            self._arrived[choices] = self.denoiser.teleport(self.trellis, outputs)
        return self._arrived[choices]

    def _error(self, step: int, outputs: list[Any], calls: int, arrived: Any) -> float:
        from adatsq_pipe.stages.numerics.metrics import relative_error
        from adatsq_pipe.stages.outputs import leaves

        if self.space.settings.error == "state":
            got = self.denoiser.state(arrived)
            wanted = self._reference_states()[step + 1]
        else:
            place = len(outputs) - calls
            got = [x for output in outputs[place:] for x in leaves(output)]
            wanted = [x for output in self.reference.outputs[place : place + calls] for x in leaves(output)]
        return sum(relative_error(g, w) for g, w in zip(got, wanted, strict=True)) / len(got)

    def _roll_out(self, choices: Choices) -> float:
        from adatsq_pipe.stages.numerics.metrics import relative_error
        from adatsq_pipe.stages.trajectories import read_trajectory

        with unit_of(self.context, self.stage, f"rollout/{digest_of(choices)}") as unit:
            rows = [self.space.whole_row(t, self.space.bits[t][c]) for t, c in enumerate(choices)]
            with unit.timed("model"):
                run = self.denoiser.record(self.rollouts, see=lambda j, call: self._set_bits(rows[call.step]))
            wanted = read_trajectory(self.context, self.rollout_shard).latents
            error = relative_error(run.latents, wanted[: len(run.latents)])
            unit.value = {"choices": list(choices), "error": error, "calls": len(run.outputs)}
        return error


def _first(conditions: Any, count: int) -> Any:
    from adatsq_pipe.stages.denoiser import Conditions

    return Conditions(
        prompts=conditions.prompts[:count], seeds=conditions.seeds[:count], inputs=conditions.inputs[:count]
    )


def drive(executor: Executor, context: Context, report: Report) -> None:
    """The search itself: ask the beam, have its paths evaluated, tell it. Resumes from the levels that are done."""
    space, manifest = Trellis(context), context.manifest("search")
    beam, asked = space.beam(), 0
    while not beam.finished:
        level = f"level/{beam.level:03d}"
        paths = beam.ask()
        if manifest.done(level):
            told = context.read("search", level)[0].value
        else:
            told = _evaluated(context, executor, "path", paths)
            with unit_of(context, "search", level) as unit:
                unit.value = told
                _count_in(context, unit, [f"path/{digest_of(path)}" for path in paths])
        beam = beam.tell({path: told[digest_of(path)] for path in paths})
        asked += len(paths)
        report(beam.level, len(beam.prices) + 1)
    rollouts = _evaluated(context, executor, "rollout", [path.choices for path in beam.paths])
    if not manifest.done("front"):
        _write_front(context, space, beam, rollouts)
    for scratch in [unit for unit in manifest.units(anew=True) if unit.startswith("path/")]:
        manifest.discard(scratch)
    report(len(beam.prices) + 1, len(beam.prices) + 1)


def _count_in(context: Context, unit: Unit, parts: list[str]) -> None:
    """Put the cost of evaluations, whose own units are scratch, on the level's account."""
    for part in parts:
        marker = context.manifest("search").read(part)
        for kind in ("model", "algebra"):
            unit.seconds[kind] += marker.seconds[kind]
        unit.calls += int(marker.value["calls"])
        unit.elsewhere += marker.seconds["total"]


def _evaluated(context: Context, executor: Executor, kind: str, paths: list[Choices]) -> dict[str, float]:
    """Errors by digest; evaluations already committed are not done again."""
    manifest, errors = context.manifest("search"), dict[str, float]()
    missing = dict[str, str]()
    for path in _dealt(paths):
        if manifest.done(f"{kind}/{digest_of(path)}"):
            errors[digest_of(path)] = context.read("search", f"{kind}/{digest_of(path)}")[0].value["error"]
        else:
            missing[f"{kind}/{'.'.join(map(str, path))}"] = digest_of(path)
    for key, error in executor.stream(Evaluate, context, missing):
        errors[missing[key]] = error
    return errors


def _dealt(paths: list[Choices]) -> list[Choices]:
    """The paths in turn of their parents, so that of two workers each tends to stay with one parent's state."""
    families: dict[Choices, list[Choices]] = {}
    for path in paths:
        families.setdefault(path[:-1], []).append(path)
    return [path for row in zip_longest(*families.values()) for path in row if path is not None]


def _write_front(context: Context, space: Trellis, beam: Beam, rollouts: Mapping[str, float]) -> None:
    from adatsq_pipe.storage import tables

    steps = len(beam.prices)
    with unit_of(context, "search", "front") as unit:
        rows = []
        for path in beam.front:
            policy = space.policy(path.choices)
            rows.append(
                {
                    "digest": digest_of(path.choices),
                    "choices": list(path.choices),
                    "mean_bits": path.price / steps,
                    "mac_weighted_bits": space.mac_weighted(policy),
                    "trellis_error": path.error,
                    "rollout_error": rollouts.get(digest_of(path.choices)),
                    "bits": [b for row in policy.bits for b in row],
                }
            )
        tables.write(unit.folder / "front.parquet", rows)
        best = min(beam.paths, key=lambda p: (rollouts[digest_of(p.choices)], p.price, p.choices))
        unit.value = {
            "policy": [list(row) for row in space.whole(space.policy(best.choices)).bits],
            "mean_bits": best.price / steps,
            "mac_weighted_bits": space.mac_weighted(space.policy(best.choices)),
            "rollout_error": rollouts[digest_of(best.choices)],
            "front": len(rows),
        }


def policy_of(context: Context) -> Policy:
    """The chosen policy over all layers in survey order (16 = weight-only)."""
    from adatsq_pipe.stages.numerics.policy import Policy

    marker, _ = context.read("search", "front")
    return Policy(tuple(tuple(row) for row in marker.value["policy"]))


def run(context: Context, executor: Executor, report: Report) -> None:
    allocation = resolve(context.tables["recipe"]).allocation
    if allocation == "trellis":
        executor.conduct(drive, context, report)
    elif allocation == "decoupled":
        decoupled.allocate(context, executor, report)
    else:
        _uniform(context)
        report(1, 1)


def _uniform(context: Context) -> None:
    """No search: the recipe's activation bits everywhere."""
    bits = resolve(context.tables["recipe"]).activation_bits
    survey = capture.survey_of(context)
    row = [bits if layer["kind"] == "tokens" else 16 for layer in survey["layers"]]
    if not context.manifest("search").done("front"):
        with unit_of(context, "search", "front") as unit:
            unit.value = {
                "policy": [row] * survey["steps"],
                "mean_bits": float(bits),
                "mac_weighted_bits": float(bits),
                "rollout_error": None,
                "front": 1,
            }


def _reads(tables: Mapping[str, Any], model: str) -> Plain:
    recipe = resolve(tables["recipe"])
    if recipe.allocation == "uniform":
        return {"allocation": "uniform", "activation_bits": recipe.activation_bits}
    return {**identity(tables, "compute", "search"), "allocation": recipe.allocation}


STAGE = Stage(
    name="search",
    version=1,
    needs=("capture", "fisher", "solve"),
    reads=_reads,
    run=run,
    expected=lambda context: None,
    settings=SearchSettings,
)
