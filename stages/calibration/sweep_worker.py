"""Fisher's other worker: end-to-end effects of rounding, by the trajectory adjoint."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from adatsq_pipe.stages.architecture.layers import quantizable_linears
from adatsq_pipe.stages.architecture.memory import plan_of
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.micro_batch import OutOfMemoryBackoff
from adatsq_pipe.stages.base.survey import LayerInfo
from adatsq_pipe.stages.base.units import unit_of
from adatsq_pipe.stages.calibration import inputs
from adatsq_pipe.stages.calibration.effects import WIDTHS, FisherSettings
from adatsq_pipe.stages.calibration.rotations import rotations_of
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.calibration.trajectories import read_trajectory
from adatsq_pipe.stages.calibration.unit_keys import DIFFERENTIABLE, SweepKey, read_sweep_key
from adatsq_pipe.stages.denoiser.adjoint import Crossing, obstacle, sweep
from adatsq_pipe.stages.denoiser.block_offload import blocks_of
from adatsq_pipe.stages.denoiser.conditions import calibration_shards
from adatsq_pipe.stages.denoiser.loading import denoiser_of
from adatsq_pipe.stages.methods._layer import spec_of
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.numerics.effects import activation_effects, by_sample, weight_effects
from adatsq_pipe.stages.numerics.grid import Grid, dequantize, quantize, weight_grid
from adatsq_pipe.stages.numerics.transform import rotate, rotate_back, rotate_twice
from adatsq_pipe.stages.runtime.spec import LayerSpec
from adatsq_pipe.storage import tensors


class Sweep(OutOfMemoryBackoff):
    """The stage's worker for sweeps."""

    stage: ClassVar[str] = "fisher"

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context, self.settings = context, context.settings[FisherSettings]
        self.recipe = context.settings[Recipe]
        self.denoiser = denoiser_of(context, self.micro)
        self.shards = calibration_shards(context)
        self.survey = survey_of(context)
        linears = quantizable_linears(self.denoiser.transformer)
        self.layers = {row.name: linears[row.name] for row in self.survey.layers}
        self.rounding = {row.name: _Rounding(self.recipe, i, row) for i, row in enumerate(self.survey.layers)}
        self._find_rotations()
        fits = self.denoiser.offload is None and str(self.denoiser.device) == "cpu"
        self.memory = _Memory(sum(layer.weight.nbytes for layer in self.layers.values()) if fits else 0)
        """On a GPU rounding a weight takes little of the time, and its error would take the memory."""
        plan = plan_of(context, self.survey)
        again = self.settings.gradient_checkpointing or (plan is not None and plan.recomputed)
        self.again = blocks_of(self.denoiser.parts) if again else []

    def _find_rotations(self) -> None:
        """Those that are stored, of every input once."""
        found = dict[str, dict[str, Tensor]]()
        for row in self.survey.layers:
            rounding = self.rounding[row.name]
            if rounding.spec.dual:
                if row.input_of not in found:
                    rows = (x for _, x in inputs.rows(self.context, row.input_of))
                    found[row.input_of] = rotations_of(
                        rows, row.input_of, block=rounding.spec.block, steps=self.recipe.rotation_steps
                    )
                rounding.stored = found[row.input_of]

    def __call__(self, key: str) -> None:
        with unit_of(self.context, self.stage, key, self.micro) as unit:
            if key == DIFFERENTIABLE:
                run = read_trajectory(self.context, 0)
                unit.value = {"obstacle": obstacle(self.denoiser, self.shards[0], run)}
                return
            at = read_sweep_key(key)
            with unit.timed("model"):
                found = self._swept(at)
            tensors.write(unit.folder, found, {"widths": list(WIDTHS)})

    def _swept(self, at: SweepKey) -> dict[str, Tensor]:
        """The effects of one batch of captions and one direction."""
        run, conditions = read_trajectory(self.context, at.batch), self.shards[at.batch]
        captions, survey = len(conditions.prompts), self.survey
        activations = torch.zeros(captions, survey.steps, len(survey.layers), len(WIDTHS), dtype=torch.float64)
        weights = torch.zeros(captions, survey.steps, len(survey.layers), dtype=torch.float64)

        shared = list[_Pass]()
        """The latest crossings, as long as they are of layers with one input: it is rounded once for all of them."""

        @torch.no_grad()
        def finish() -> None:
            if shared:
                of_activations = shared[0].rounding.of_tokens(shared[0].x, [one.gradient for one in shared])
                for one, effects in zip(shared, of_activations, strict=True):
                    found = by_sample(effects, one.samples, captions).cpu()
                    activations[:, one.step, one.rounding.place] += found
                shared.clear()

        def see(crossing: Crossing) -> None:
            rounding, step = self.rounding[crossing.layer], crossing.call.step
            of_weight = rounding.of_weight(crossing, self.memory)
            weights[:, step, rounding.place] += by_sample(of_weight, crossing.samples, captions).cpu()
            if not rounding.rounded:
                return
            one = _Pass(rounding, step, crossing.samples, crossing.x.detach(), crossing.input_gradient)
            if shared and not shared[0].shares_input(one):
                finish()
            shared.append(one)

        sweep(self.denoiser, conditions, run, self._direction(at, run.latents), self.layers, see, recomputed=self.again)
        finish()
        for name, effects in (("activations", activations), ("weights", weights)):
            if not effects.isfinite().all():
                step, layer = (int(i) for i in (~effects.isfinite()).nonzero()[0][1:3])
                raise StageError(
                    f"NaN or infinity in the effects of {name} of layer {survey.layers[layer].name} at step {step} "
                    f"(timestep {survey.timesteps[step]:g}); set compute.dtype to float32"
                )
        norms = run.latents.double().reshape(captions, -1).square().sum(1)
        return {"activations": activations.float(), "weights": weights.float(), "latents": norms.cpu()}

    def _direction(self, at: SweepKey, latents: Tensor) -> Tensor:
        """Standard normal numbers in the shape of the final latents."""
        state = np.random.SeedSequence((self.settings.seed, at.draw, at.batch)).generate_state(1)[0]
        return torch.randn(latents.shape, generator=torch.Generator().manual_seed(int(state)))


@dataclass
class _Memory:
    """Bytes left for the weights' rounding errors, which are computed once where they fit."""

    bytes: int

    def take(self, size: int) -> bool:
        fits = size <= self.bytes
        self.bytes -= size if fits else 0
        return fits


class _Rounding:
    """How a recipe rounds one layer: the basis, the grid of the weight, the grids of tokens."""

    def __init__(self, recipe: Recipe, place: int, row: LayerInfo) -> None:
        self.place, self.rounded, self.recipe = place, row.rounded, recipe
        self.spec = spec_of(recipe, row)
        self.basis = (self.spec.block, self.spec.regular, self.spec.symmetric_activations, self.spec.activation_group)
        self.stored = dict[str, Tensor]()
        """The rotations and the order of channels between them, if the spec has them so."""
        self._grid: Grid | None = None
        self._weight_error: Tensor | None = None

    def _rotated(self, x: Tensor) -> Tensor:
        """`x` [..., in] in the basis of the codes, float32."""
        if self.stored:
            return rotate_twice(x.float(), *self._stored_on(x.device))
        return rotate(x.float(), _rotation(self.spec, x.device))

    def _rotated_back(self, x: Tensor) -> Tensor:
        if self.stored:
            return rotate_back(x, *self._stored_on(x.device))
        return rotate(x, _rotation(self.spec, x.device))  # a Hadamard matrix here is its own inverse

    def _stored_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        self.stored = {name: tensor.to(device) for name, tensor in self.stored.items()}
        return self.stored["rotations"], self.stored["between"]

    def of_tokens(self, x: Tensor, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Effects of rounding the tokens of the input `x`, [rows, widths], by gradient."""
        symmetric, group = self.spec.symmetric_activations, self.spec.activation_group
        basis = _rotation(self.spec, x.device)
        if self.stored:
            x, gradients = self._rotated(x), [self._rotated(gradient) for gradient in gradients]
            basis = torch.ones(1, 1, device=x.device)
        return activation_effects(x, gradients, basis, WIDTHS, symmetric=symmetric, group=group)

    def of_weight(self, crossing: Crossing, memory: _Memory) -> Tensor:
        """Effects of rounding the weight, [rows]."""
        error = self._weight_error
        if error is None:
            error = self._error(crossing.weight)
            if memory.take(error.nbytes):
                self._weight_error = error
        return weight_effects(crossing.x, crossing.output_gradient, error)

    def _error(self, weight: Tensor) -> Tensor:
        """Rounding to nearest less the weight, in the weight's own basis. Of weights in bfloat16 the error is too, so
        that its product costs no more than the layer's own."""
        weight_OI = self._rotated(weight)
        if self._grid is None:
            grid = weight_grid(
                weight_OI, bits=self.spec.weight_bits, group=self.spec.group,
                symmetric=self.recipe.weight_symmetric, clip=self.recipe.weight_clip,
            )  # fmt: skip
            self._grid = replace(grid, scale_OG=grid.scale_OG.bfloat16().float())
        columns = self._grid.columns(weight_OI.shape[1])
        codes = quantize(weight_OI, *columns, self._grid.qmax)
        error = self._rotated_back(dequantize(codes, *columns).sub_(weight_OI))
        return error.to(weight.dtype) if weight.dtype == torch.bfloat16 else error


@functools.cache
def _rotation(spec: LayerSpec, device: torch.device) -> Tensor:
    return spec.rotation(dtype=torch.float32, device=device)


@dataclass(frozen=True)
class _Pass:
    """A crossing of a layer whose tokens are rounded; `gradient` is the input's."""

    rounding: _Rounding
    step: int
    samples: range
    x: Tensor
    gradient: Tensor

    def shares_input(self, other: _Pass) -> bool:
        """Whether both layers have one input, rounded alike."""
        a, b = self.x, other.x
        same = a.data_ptr() == b.data_ptr() and (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
        return same and self.rounding.basis == other.rounding.basis
