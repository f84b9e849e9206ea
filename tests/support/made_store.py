"""A made-up run directory: what the stages leave for three tiny layers, three steps and two batches of captions.

Every number is plain and seeded, and stays readable on the MadeStore, so that a test can state with a few lines of
torch what a stage must make of it. A test writes only the parts that its stage reads. Axes: B batches of captions,
C denoiser calls of a run, T scheduler steps, L layers in survey order, R sampled rows, I and O channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.settings import DataSettings
from adatsq_pipe.stages.calibration.survey import CaptureSettings
from adatsq_pipe.storage import tables, tensors
from adatsq_pipe.storage.manifest import Manifest
from adatsq_pipe.storage.rundir import RunDir
from tests.support.made_context import FIRST, MODULATION, SECOND, SHAPES, TOKENS, made_context
from tests.support.slow_math import half


def make_store(
    folder: Path, /, *, calls: Sequence[int] = (0, 1, 2), seed: int = 0, **overrides: Mapping[str, Any]
) -> MadeStore:
    """A store in `folder`, with nothing but the run's format in it. `calls` names the step of every denoiser call."""
    context = made_context(folder / "run", folder / "model", **overrides)
    RunDir.at(context.run).create()
    return MadeStore(context, tuple(calls), seed)


class MadeStore:
    """The numbers of a made-up run, and one method per part of it that writes the part to disk."""

    def __init__(self, context: Context, calls: tuple[int, ...], seed: int) -> None:
        self.context, self.calls = context, calls
        self.steps = max(calls) + 1
        self.timesteps = [1000.0 - 300 * step for step in range(self.steps)]
        prompts, size = context.settings[DataSettings].prompts, context.settings[DataSettings].batch
        self.batches = -(-len(prompts) // size)
        self.names = list(SHAPES)
        self.source = {FIRST: FIRST, SECOND: FIRST, MODULATION: MODULATION}
        random = torch.Generator().manual_seed(seed)
        drawn = [self._drawn(random, name) for name in (FIRST, MODULATION)]
        self.rows: dict[str, Tensor] = {FIRST: drawn[0][0], MODULATION: drawn[1][0]}
        """Sampled input rows by the layer that owns the input, [B, C, R, I]."""
        self.peaks: dict[str, Tensor] = {FIRST: drawn[0][1], MODULATION: drawn[1][1]}
        """Absolute maxima of the input, above those of the sampled rows, [B, C, I]."""
        self.scores = torch.rand(self.batches, self.steps, len(SHAPES), generator=random, dtype=torch.float64) + 0.1
        """Fisher scores, [B, T, L]."""
        self.curvature = {n: torch.rand(self.batches, self.steps, o, generator=random) for n, (o, _) in SHAPES.items()}
        """Mean squared gradients of output channels, [B, T, O] of each layer."""
        self.weights = {n: torch.randn(shape, generator=random) / shape[1] ** 0.5 for n, shape in SHAPES.items()}
        """Full-precision weights, [O, I]; the fake denoiser has others unless they are loaded into it."""
        self.grams = {n: self._gram(random, i) for n, (_, i) in SHAPES.items()}
        """Weighted Gram matrices of inputs, [I, I] of each layer."""
        self.bits = [
            [(3, 4, 8)[(t + i) % 3] if n != MODULATION else 16 for i, n in enumerate(SHAPES)] for t in range(self.steps)
        ]
        """Activation bits of the chosen policy, [T][L]; 16 = not rounded."""

    def _drawn(self, random: torch.Generator, name: str) -> tuple[Tensor, Tensor]:
        """Rows and peaks of one input. Scales of channels differ, and so do those of steps."""
        width = SHAPES[name][1]
        size = (
            self.batches,
            len(self.calls),
            max(1, self.context.settings[CaptureSettings].rows * self.steps // len(self.calls)),
        )
        scale = torch.linspace(0.5, 3, width) * (1 + torch.tensor(self.calls))[:, None, None]
        rows = torch.randn(*size, width, generator=random) * scale
        return rows, rows.abs().amax(2) * (1 + torch.rand(*size[:2], width, generator=random))

    def _gram(self, random: torch.Generator, width: int) -> Tensor:
        x = torch.randn(4 * width, width, generator=random) * torch.linspace(0.5, 3, width)
        return x.T @ x / len(x)

    def manifest(self, stage: str) -> Manifest:
        """Where the units of a stage are written and read."""
        return self.context.manifest(stage)

    def row(self, name: str) -> dict[str, Any]:
        """The survey's row of a layer."""
        (out, width), tokens = SHAPES[name], name != MODULATION
        return {
            "name": name,
            "in": width,
            "out": out,
            "kind": "tokens" if tokens else "conditioning",
            "source": self.source[name],
            "macs": (TOKENS if tokens else 1) * width * out,
        }

    def survey(self) -> dict[str, Any]:
        """What the unit `survey` holds."""
        return {
            "layers": [self.row(name) for name in self.names],
            "unused": [],
            "repeated": [],
            "steps": self.steps,
            "calls": list(self.calls),
            "timesteps": self.timesteps,
            "parameters": sum(o * i + o for o, i in SHAPES.values()) + 16 * 16 + 16,
        }

    def write_survey(self, **changes: Any) -> None:
        """Capture's `survey`, with `changes` to its fields, and an empty `left`."""
        manifest = self.manifest("capture")
        for unit, value in (("survey", {**self.survey(), **changes}), ("left", [])):
            manifest.open_unit(unit)
            manifest.commit(unit, value=value)

    def _blocks(self) -> list[range]:
        size = self.context.settings[CaptureSettings].block
        return [range(start, min(start + size, self.steps)) for start in range(0, self.steps, size)]

    def write_activations(self) -> None:
        """Capture's `activations/<block>-<batch>`: `rows:` and `absmax:` of every distinct input."""
        manifest = self.manifest("capture")
        for block, steps in enumerate(self._blocks()):
            chosen = [call for call, step in enumerate(self.calls) if step in steps]
            for batch in range(self.batches):
                unit = f"activations/{block:03d}-{batch:03d}"
                parts = {f"rows:{name}": rows[batch, chosen] for name, rows in self.rows.items()}
                parts |= {f"absmax:{name}": peaks[batch, chosen] for name, peaks in self.peaks.items()}
                marks = {"start": steps.start, "stop": steps.stop, "calls_per_step": self.calls.count(steps.start)}
                tensors.write_stacked(manifest.open_unit(unit), parts, marks)
                manifest.commit(unit)

    def write_effects(self, obstacle: str = "") -> tuple[Tensor, Tensor]:
        """Fisher's `differentiable` and one sweep a batch; (effects of activations [captions, T, L, 6 widths], of
        weights [captions, T, L]), which fall by about half a bit's worth and keep their sign over steps."""
        manifest, random = self.manifest("fisher"), torch.Generator().manual_seed(11)
        manifest.open_unit("differentiable")
        manifest.commit("differentiable", value={"obstacle": obstacle})
        size, per_batch = (self.steps, len(self.names)), self.context.settings[DataSettings].batch
        width = 4.0 ** -torch.arange(6)
        found = []
        for batch in range(self.batches):
            by_step = (1 + torch.arange(self.steps))[:, None, None]
            activations = torch.randn(per_batch, *size, 6, generator=random) * width * by_step
            weights = torch.randn(per_batch, 1, size[1], generator=random).repeat(1, self.steps, 1) + 0.1
            parts = {"activations": activations, "weights": weights, "latents": torch.full((per_batch,), 50.0)}
            tensors.write(manifest.open_unit(f"sweep/{batch:03d}-000"), parts, {})
            manifest.commit(f"sweep/{batch:03d}-000")
            found.append((activations, weights))
        return torch.cat([a for a, _ in found]), torch.cat([w for _, w in found])

    def write_trajectory(self, batch: int, outputs: Tensor, latents: Tensor) -> None:
        """Capture's `trajectory/<batch>` of a denoiser that returns one tensor: `outputs` [C, ...] of all calls."""
        manifest, unit = self.manifest("capture"), f"trajectory/{batch:03d}"
        times = [self.timesteps[step] for step in self.calls]
        marks = {"steps": list(self.calls), "timesteps": times, "structure": '"tensor"'}
        tensors.write(manifest.open_unit(unit), {"output0": outputs, "latents": latents}, marks)
        manifest.commit(unit, value={"calls": len(outputs), "samples": len(latents)})

    def write_scores(self, *, curvature: bool = False) -> None:
        """Fisher's `scores/<block>-<batch>`, with the curvature of output channels where a recipe calls for it."""
        manifest = self.manifest("fisher")
        for block, steps in enumerate(self._blocks()):
            here = slice(steps.start, steps.stop)
            for batch in range(self.batches):
                unit, parts = f"scores/{block:03d}-{batch:03d}", {"scores": self.scores[batch, here]}
                if curvature:
                    parts |= {f"curvature:{name}": c[batch, here] for name, c in self.curvature.items()}
                tensors.write(manifest.open_unit(unit), parts, {"start": steps.start, "stop": steps.stop})
                manifest.commit(unit)

    def write_grams(self) -> None:
        """Hessian's `gram/<source>`: half of the Gram matrix of every layer that shares the input."""
        manifest = self.manifest("hessian")
        for source in self.rows:
            sharers = [name for name in self.names if self.source[name] == source]
            tensors.write(manifest.open_unit(f"gram/{source}"), {name: half(self.grams[name]) for name in sharers})
            manifest.commit(
                f"gram/{source}", value={n: {"gram": n, "tau": None, "effective_steps": self.steps} for n in sharers}
            )

    def write_layer(self, name: str, stored: Mapping[str, Tensor], spec: Mapping[str, Any], **value: Any) -> None:
        """Solve's `layer/<name>`: its tensors, and in the value the `spec` beside the errors and further fields."""
        manifest, unit = self.manifest("solve"), f"layer/{name}"
        tensors.write(manifest.open_unit(unit), stored)
        errors = {"error": 0.01, "damping": 0.01, "smoothing": "none"}
        manifest.commit(unit, value={**errors, "spec": dict(spec), **value})

    def write_layers(self, bits: int = 4) -> dict[str, Tensor]:
        """Solve's units with every weight rounded to nearest, a scale per row; returns what they stand for."""
        values: dict[str, Tensor] = {}
        for name, w in self.weights.items():
            low, high = w.amin(1, keepdim=True).clamp(max=0), w.amax(1, keepdim=True).clamp(min=0)
            scale = ((high - low) / (2**bits - 1)).bfloat16().float()
            zero = torch.round(-low / scale)
            codes = (torch.round(w / scale) + zero).clamp(0, 2**bits - 1)
            values[name] = (codes - zero) * scale
            stored = {"codes": codes.to(torch.uint8), "scale": scale.bfloat16(), "zero": zero.to(torch.uint8)}
            spec = {"weight_bits": bits, "group": 0, "block": 1, "symmetric_activations": False}
            self.write_layer(name, stored, spec)
        return values

    def write_front(self, rows: Sequence[dict[str, Any]] = ()) -> None:
        """Search's `front`: the policy `bits`, and `rows` as the Pareto front if there are any."""
        manifest, rounded = self.manifest("search"), [b for row in self.bits for b in row if b != 16]
        folder, mean = manifest.open_unit("front"), sum(rounded) / len(rounded)
        if rows:
            tables.write(folder / "front.parquet", rows)
        costs = {"mean_bits": mean, "mac_weighted_bits": mean, "rollout_error": None, "front": max(1, len(rows))}
        manifest.commit("front", value={"policy": [list(row) for row in self.bits], **costs})
