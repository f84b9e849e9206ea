"""Activation bits by layer, the same at every timestep, decoupled by kind of layer (ViDiT-Q, 2406.02540, sec. 4.3).

A layer's sensitivity is the error of the denoiser's output when this layer's activations alone are rounded. Layers of
one kind are ranked among themselves and share the budget of mean bits, so that kinds whose errors are small in this
measure are not robbed. Units of the search stage: `sensitivity/<layer's place>`, and `front`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from adatsq_pipe.stages.allocation.trellis import SearchSettings
from adatsq_pipe.stages.base.context import Context, Executor, Report
from adatsq_pipe.stages.base.micro_batch import Halving
from adatsq_pipe.stages.base.units import fan_out, unit_of
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY, Policy, allocate_greedily

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 3
"""Timesteps at which sensitivities are measured, evenly from the first to the last."""
CONDITIONED = ("attn2", "add_q", "add_k", "add_v", "add_out", "context", "caption", "text", "encoder_hidden")
ATTENTION = ("attn", "attention", "to_q", "to_k", "to_v", "to_out")


def kind_of(name: str) -> str:
    """What a layer mainly affects: it sees the condition, it is other attention, or neither. By the names in use."""
    if any(part in name for part in CONDITIONED):
        return "condition"
    return "attention" if any(part in name for part in ATTENTION) else "rest"


class Sensitivity(Halving):
    """The worker: holds the model with its solved weights, and rounds the activations of one layer at a time."""

    stage: ClassVar[str] = "search"

    def __init__(self, context: Context) -> None:

        from adatsq_pipe.stages.calibration.trajectories import read_trajectory
        from adatsq_pipe.stages.denoiser.conditions import calibration_shards
        from adatsq_pipe.stages.denoiser.denoiser import Call
        from adatsq_pipe.stages.denoiser.loading import denoiser_of
        from adatsq_pipe.stages.weights.solved import load_solved

        super().__init__()
        self.context, self.survey = context, survey_of(context)
        self.bits = context.settings[SearchSettings].bits
        shards, steps = calibration_shards(context), self.survey["steps"]
        self.denoiser = denoiser_of(context, self.micro, to_change=True)
        policy = Policy.uniform(steps, len(self.survey["layers"]), WEIGHT_ONLY)
        self.layers = list(load_solved(context, self.denoiser.transformer, policy).values())
        wanted = {round(i * (steps - 1) / (STEPS - 1)) for i in range(STEPS)}
        self.calls = list[Call]()

        def see(j: int, call: Call) -> None:
            if call.step in wanted:
                self.calls.append(call)

        self.denoiser.replay(shards[0], read_trajectory(context, 0).outputs, see=see)
        self._whole: list[list[Tensor]] | None = None

    def _unrounded(self) -> list[list[Tensor]]:
        """The outputs with no activation rounded."""

        if self._whole is None:
            row = [WEIGHT_ONLY] * len(self.layers)
            self._whole = [self._outputs(call, row) for call in self.calls]
        return self._whole

    def _outputs(self, call: Any, row: list[int]) -> list[Tensor]:
        """The outputs of `call` with the layers' activations at the bits of `row`."""
        from adatsq_pipe.stages.denoiser.outputs import leaves
        from adatsq_pipe.stages.runtime.policy_hook import set_bits

        set_bits(self.layers, row)
        return leaves(self.denoiser.run(call))

    def __call__(self, key: str) -> None:
        import torch

        from adatsq_pipe.stages.numerics.metrics import relative_error

        layer = int(key.partition("/")[2])
        with unit_of(self.context, self.stage, key, self.micro) as unit, torch.no_grad():
            errors, whole = [], self._unrounded()
            for bits in self.bits:
                row = [bits if i == layer else WEIGHT_ONLY for i in range(len(self.layers))]
                with unit.timed("model"):
                    got = [self._outputs(call, row) for call in self.calls]
                pairs = [pair for a, b in zip(got, whole, strict=True) for pair in zip(a, b, strict=True)]
                errors.append(sum(relative_error(g, w) for g, w in pairs) / len(pairs))
            unit.calls = len(self.bits) * len(self.calls)
            unit.value = {"errors": errors}


def allocate(context: Context, executor: Executor, report: Report) -> None:
    """Measure every layer, spend the budget inside each kind, and commit the policy as the stage's `front`."""

    settings, survey = context.settings[SearchSettings], survey_of(context)
    rows: Sequence[Mapping[str, Any]] = survey["layers"]
    rounded = [i for i, row in enumerate(rows) if row["kind"] == "tokens"]
    fan_out(context, executor, Sensitivity, [f"sensitivity/{i:04d}" for i in rounded], report)
    if context.manifest("search").done("front"):
        return
    errors = {i: context.read("search", f"sensitivity/{i:04d}")[0].value["errors"] for i in rounded}
    kinds: dict[str, list[int]] = {}
    for i in rounded:
        kinds.setdefault(kind_of(rows[i]["name"]), []).append(i)
    row = [WEIGHT_ONLY] * len(rows)
    for members in kinds.values():
        spent = allocate_greedily([errors[i] for i in members], settings.bits, settings.budget)
        for i, bits in zip(members, spent, strict=True):
            row[i] = bits
    policy = Policy((tuple(row[i] for i in rounded),))
    with unit_of(context, "search", "front") as unit:
        unit.value = {
            "policy": [row] * survey["steps"],
            "mean_bits": policy.mean,
            "mac_weighted_bits": policy.weighted_mean([rows[i]["macs"] for i in rounded]),
            "rollout_error": None,
            "front": 1,
            "kinds": {kind: len(members) for kind, members in kinds.items()},
        }
