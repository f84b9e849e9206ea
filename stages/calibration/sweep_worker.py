"""Fisher's other worker: end-to-end effects of rounding, by the trajectory adjoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from adatsq_pipe.stages.architecture.layers import quantizable_linears
from adatsq_pipe.stages.architecture.memory import plan_of
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.micro_batch import OutOfMemoryBackoff
from adatsq_pipe.stages.base.units import unit_of
from adatsq_pipe.stages.calibration.effects import WIDTHS, FisherSettings
from adatsq_pipe.stages.calibration.input_transform import Basis, bases, best_basis
from adatsq_pipe.stages.calibration.layer_inputs import LayerInputs, rounded_inputs
from adatsq_pipe.stages.calibration.layer_rounding import LayerRounding
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.calibration.trajectories import read_trajectory
from adatsq_pipe.stages.calibration.unit_keys import DIFFERENTIABLE, SweepKey, read_sweep_key
from adatsq_pipe.stages.denoiser.adjoint import Crossing, obstacle, sweep
from adatsq_pipe.stages.denoiser.block_offload import blocks_of
from adatsq_pipe.stages.denoiser.conditions import calibration_shards
from adatsq_pipe.stages.denoiser.loading import denoiser_of
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.numerics.effects import by_sample
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
        self.rounding = {row.name: LayerRounding(self.recipe, i, row) for i, row in enumerate(self.survey.layers)}
        self._find_bases()
        fits = self.denoiser.offload is None and str(self.denoiser.device) == "cpu"
        self.memory = _Memory(sum(layer.weight.nbytes for layer in self.layers.values()) if fits else 0)
        """On a GPU rounding a weight takes little of the time, and its error would take the memory."""
        plan = plan_of(context, self.survey)
        again = self.settings.gradient_checkpointing or (plan is not None and plan.recomputed)
        self.again = blocks_of(self.denoiser.parts) if again else []

    def _find_bases(self) -> None:
        """The basis and the shift of every layer that has more than a Hadamard matrix, as solve finds them; rotations
        that rest on an input alone, once an input."""
        found = dict[str, Basis]()
        for row in self.survey.layers:
            rounding = self.rounding[row.name]
            spec = rounding.spec
            if spec.permuted or spec.smoothed or spec.shift_groups:
                weight = self.layers[row.name].weight.detach().to(self.denoiser.device).float()
                found_in, spec = rounded_inputs(self.context, self.recipe, row, spec, self.denoiser.device)
                basis, _ = best_basis(self.recipe, found_in, spec, weight)
                rounding.use(basis, found_in.shift)
            elif spec.dual:
                if row.input_of not in found:
                    found_in = LayerInputs(context=self.context, row=row, device="cpu")
                    found[row.input_of] = bases(self.recipe, found_in, spec, self.layers[row.name].weight.detach())[0]
                rounding.use(found[row.input_of], None)

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
                of_activations = shared[0].rounding.of_tokens(
                    shared[0].x, [one.gradient for one in shared], shared[0].step
                )
                for one, effects in zip(shared, of_activations, strict=True):
                    found = by_sample(effects, one.samples, captions).cpu()
                    activations[:, one.step, one.rounding.place] += found
                shared.clear()

        def see(crossing: Crossing) -> None:
            rounding, step = self.rounding[crossing.layer], crossing.call.step
            of_weight = rounding.of_weight(crossing, self.memory.take)
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


@dataclass(frozen=True)
class _Pass:
    """A crossing of a layer whose tokens are rounded; `gradient` is the input's."""

    rounding: LayerRounding
    step: int
    samples: range
    x: Tensor
    gradient: Tensor

    def shares_input(self, other: _Pass) -> bool:
        """Whether both layers have one input, rounded alike."""
        a, b = self.x, other.x
        same = a.data_ptr() == b.data_ptr() and (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
        return same and self.rounding.key == other.rounding.key
