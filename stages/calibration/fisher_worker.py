"""Fisher's worker: squared gradients of every layer, reduced on the spot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from adatsq_pipe.stages.architecture.layers import quantizable_linears
from adatsq_pipe.stages.architecture.memory import plan_of
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.base.micro_batch import OutOfMemoryBackoff
from adatsq_pipe.stages.base.units import unit_of
from adatsq_pipe.stages.calibration.effects import FisherSettings
from adatsq_pipe.stages.calibration.survey import step_blocks, survey_of
from adatsq_pipe.stages.calibration.trajectories import read_trajectory
from adatsq_pipe.stages.calibration.unit_keys import read_block_key
from adatsq_pipe.stages.denoiser.block_offload import SavedTensor, blocks_of, checkpoint_blocks
from adatsq_pipe.stages.denoiser.call import Call
from adatsq_pipe.stages.denoiser.conditions import calibration_shards
from adatsq_pipe.stages.denoiser.loading import denoiser_of
from adatsq_pipe.stages.denoiser.outputs import leaves
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.numerics.sensitivity import squared_gradient_mean
from adatsq_pipe.storage import tensors


class Fisher(OutOfMemoryBackoff):
    """The stage's worker."""

    stage: ClassVar[str] = "fisher"

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context, self.settings = context, context.settings[FisherSettings]
        self.denoiser = denoiser_of(context, self.micro)
        self.denoiser.transformer.requires_grad_(False)
        self.shards = calibration_shards(context)
        self.survey = survey_of(context)
        linears = quantizable_linears(self.denoiser.transformer)
        self.layers = {row.name: linears[row.name] for row in self.survey.layers}
        self.by_channel = context.settings[Recipe].time_search
        plan = plan_of(context, self.survey)
        again = self.settings.gradient_checkpointing or (plan is not None and plan.recomputed)
        self.again = blocks_of(self.denoiser.parts) if again else []
        """Blocks that are computed again in the backward pass."""

    def __call__(self, key: str) -> None:
        at = read_block_key(key)
        block, shard = at.block, at.batch
        steps = step_blocks(self.context, self.survey.steps)[block]
        with unit_of(self.context, self.stage, key, self.micro) as unit:
            scores = torch.zeros(len(steps), len(self.layers), dtype=torch.float64)
            curvature = {
                name: torch.zeros(len(steps), layer.out_features, dtype=torch.float64)
                for name, layer in self.layers.items()
                if self.by_channel
            }
            run, calls = read_trajectory(self.context, shard), list[tuple[int, Any]]()
            self.denoiser.replay(
                self.shards[shard], run.outputs,
                see=lambda j, call: calls.append((j, call)) if call.step in steps else None,
            )  # fmt: skip
            for j, call in calls:
                for draw in range(self.settings.draws):
                    with unit.timed("model"):
                        seed = (self.settings.seed, draw, shard, j)
                        place = call.step - steps.start
                        scores[place] += self._of_call(call, seed, {n: c[place] for n, c in curvature.items()})
            scores /= self.settings.draws * len(self.shards[shard].prompts)
            if not scores.isfinite().all():
                step, layer = (int(i) for i in (~scores.isfinite()).nonzero()[0])
                raise StageError(
                    f"NaN or infinity in the gradient of layer {list(self.layers)[layer]} at step {steps[step]} "
                    f"(timestep {self.survey.timesteps[steps[step]]:g}); set compute.dtype to float32"
                )
            curvatures = {f"curvature:{name}": c.float() for name, c in curvature.items()}
            tensors.write(unit.folder, {"scores": scores, **curvatures}, {"start": steps.start, "stop": steps.stop})

    def _of_call(self, call: Call, seed: tuple[int, ...], curvature: Mapping[str, Tensor]) -> Tensor:
        """The scores of all layers at one call. In parts, as the noise of samples is independent, they add up."""
        parts = self.denoiser.cut(call)
        of, found = sum(size for _, size in parts), torch.zeros(len(self.layers), dtype=torch.float64)
        for place, (part, size) in enumerate(parts):
            found += self._scores(part, (*seed, place) if place else seed, curvature, size / of)
        return found

    def _scores(self, call: Call, seed: tuple[int, ...], curvature: Mapping[str, Tensor], share: float) -> Tensor:
        """The scores of all layers at one call; `curvature` [out] of a layer takes the output's, if it is wanted, by
        the call's `share` of the samples."""

        found = torch.zeros(len(self.layers), dtype=torch.float64)

        def hook(index: int, name: str) -> Any:
            def see(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
                x = SavedTensor(args[0])
                if not output.requires_grad:
                    output = output.detach().requires_grad_(True)

                def take(gradient: Tensor) -> None:
                    found[index] += squared_gradient_mean(x(), gradient).cpu()
                    if name in curvature:
                        curvature[name].add_(gradient.flatten(0, -2).double().square().mean(0).cpu(), alpha=share)

                output.register_hook(take)
                return output

            return see

        random = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        handles = [layer.register_forward_hook(hook(i, name)) for i, (name, layer) in enumerate(self.layers.items())]
        try:
            with torch.enable_grad(), checkpoint_blocks(self.again):
                outputs = [o for o in leaves(self.denoiser.run(call)) if o.requires_grad]
                noise = [torch.randn(o.shape, generator=random).to(o) for o in outputs]
                torch.autograd.backward(outputs, [-n for n in noise])
        finally:
            for handle in handles:
                handle.remove()
        return found
