"""A fake denoiser: one block of three linear layers and an Euler loop, with the members that the workers use.

It obeys the contract of `stages.denoiser.Denoiser` without a pipeline, so that a test can compute by hand what a
worker must find. Its layers have the names and shapes of `made_store`, and it makes tensors of its own, never files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from functools import partial
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adatsq_pipe.stages.architecture.layers import several
from adatsq_pipe.stages.base.micro_batch import MicroBatch
from adatsq_pipe.stages.denoiser import loading
from adatsq_pipe.stages.denoiser.call import Around, Call, CallPart, Trajectory, bare_pass
from adatsq_pipe.stages.denoiser.conditions import Conditions
from tests.support.made_context import FIRST, MODULATION, SECOND, SHAPES, TOKENS

WIDTH, CONDITION = SHAPES[FIRST][1], SHAPES[MODULATION][1]


class Block(nn.Module):
    """Two projections of one tensor of tokens, gated by each other and by a modulation of the caption's vector."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, SHAPES[FIRST][0])
        self.second = nn.Linear(WIDTH, SHAPES[SECOND][0])
        self.modulation = nn.Linear(CONDITION, SHAPES[MODULATION][0])

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        value, gate = torch.cat([self.first(hidden), self.second(hidden)], dim=-1).chunk(2, dim=-1)
        return hidden + value * torch.tanh(gate + self.modulation(condition)[:, None])


class TwoLayers(nn.Module):
    """(tokens [samples, TOKENS, WIDTH], timestep [samples], condition [samples, CONDITION]) -> a tensor like tokens."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.blocks = nn.ModuleList([Block()])
            self.proj_out = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        return self.proj_out(self.blocks[0](hidden * (1 + timestep[:, None, None] / 1000), condition))


def condition_of(prompt: str) -> Tensor:
    """The vector [CONDITION] that stands for a caption; "" is that of no caption."""
    seed = sum(place * code for place, code in enumerate(prompt.encode(), 1))
    return torch.randn(CONDITION, generator=torch.Generator().manual_seed(seed))


class TwoLayerDenoiser:
    """Three Euler steps; with `guided` each makes two calls, with the captions and without. With `names` of two parts
    the first denoises at step 0 and the second after it."""

    def __init__(self, *, steps: int = 3, guided: bool = False, names: Sequence[str] = ("transformer",)) -> None:
        self.parts: dict[str, nn.Module] = {name: TwoLayers(seed).eval() for seed, name in enumerate(names)}
        self.transformer = several(self.parts)
        self.steps, self.guided = steps, guided
        self.transformer.requires_grad_(False)
        self.device, self.micro, self.offload = "cpu", MicroBatch(), None
        self.calls = 0
        """How often a network was run on a whole batch."""

    def install(self, monkeypatch: pytest.MonkeyPatch) -> TwoLayerDenoiser:
        """Have every worker of this test open this denoiser, whatever folder it asks for."""
        monkeypatch.setattr(loading, "SLOT", loading.ModelSlot())
        monkeypatch.setattr(loading, "Denoiser", lambda *args, **kwargs: self)
        return self

    def timestep(self, step: int) -> float:
        """1000, 700, 400, ... by step, as in the made-up store."""
        return 1000.0 - 300 * step

    def start(self, conditions: Conditions) -> Tensor:
        """The noise that a run starts from, [samples, TOKENS, WIDTH]: each sample's of its own seed."""
        drawn = (torch.Generator().manual_seed(seed) for seed in conditions.seeds)
        return torch.stack([torch.randn(TOKENS, WIDTH, generator=random) for random in drawn])

    def loop(self, conditions: Conditions, denoise: Callable[[Call], Tensor]) -> Tensor:
        """The final latents, with `denoise` for what the network returns at each call."""
        x = self.start(conditions)
        given = torch.stack([condition_of(prompt) for prompt in conditions.prompts])
        without = condition_of("").expand_as(given)
        for step in range(self.steps):
            time = torch.full((len(x),), self.timestep(step))
            part = list(self.parts)[min(step, len(self.parts) - 1)]
            calls = [
                Call(args=(x, time, c), kwargs={}, step=step, timestep=self.timestep(step), part=part)
                for c in ([given, without] if self.guided else [given])
            ]
            found = [denoise(call) for call in calls]
            v = found[1] + 2 * (found[0] - found[1]) if self.guided else found[0]
            x = x - v / self.steps
        return x

    def run(self, call: Call, around: Around = bare_pass) -> Tensor:
        """What the network returns at a call; `around` makes the forward passes."""
        self.calls += 1
        found = list[Tensor]()
        for place, (part, size) in enumerate(self.cut(call)):
            whole = CallPart(call=call, place=place, share=Fraction(size, len(call.args[0])))
            found.append(around(whole, partial(self.parts[part.part], *part.args)))
        return torch.cat(found)

    @torch.no_grad()
    def rehearse(self, conditions: Conditions, around: Around = bare_pass) -> list[Call]:
        """Every call of a run; each network makes its first, whose output answers all its calls."""
        calls, first = list[Call](), dict[str, Tensor]()

        def denoise(call: Call) -> Tensor:
            calls.append(call)
            if call.part not in first:
                first[call.part] = self.run(call, around)
            return first[call.part]

        self.loop(conditions, denoise)
        return calls

    @torch.no_grad()
    def record(
        self,
        conditions: Conditions,
        *,
        decode: bool = False,
        see: Callable[[int, Call], None] | None = None,
        after: Sequence[Tensor] = (),
        keep: bool = True,
        around: Around = bare_pass,
    ) -> Trajectory:
        """A run of the network; `see(j, call)` gets the inputs of call j before it is made. The first outputs are those
        of `after`."""
        calls, outputs = list[Call](), list[Tensor]()

        def denoise(call: Call) -> Tensor:
            if see is not None:
                see(len(outputs), call)
            calls.append(call)
            outputs.append(after[len(outputs)] if len(outputs) < len(after) else self.run(call, around))
            return outputs[-1]

        latents = self.loop(conditions, denoise)
        steps, times = tuple(c.step for c in calls), tuple(c.timestep for c in calls)
        pictures = latents[..., :3] if decode else None
        return Trajectory(outputs=tuple(outputs), steps=steps, timesteps=times, latents=latents, pictures=pictures)

    @torch.no_grad()
    def replay(
        self,
        conditions: Conditions,
        outputs: Sequence[Tensor],
        *,
        see: Callable[[int, Call], None] | None = None,
        decode: bool = False,
    ) -> tuple[Tensor, Any]:
        """Final latents (and pictures) that recorded outputs lead to."""
        recorded = iter(enumerate(outputs))

        def denoise(call: Call) -> Tensor:
            place, output = next(recorded)
            if see is not None:
                see(place, call)
            return output

        latents = self.loop(conditions, denoise)
        return latents, latents[..., :3] if decode else None

    def differentiable(self, conditions: Conditions, answer: Callable[[int, Call], Tensor]) -> Tensor:
        """Final latents with the graph of the loop; `answer(j, call)` is the output of call j."""
        places = count()
        with torch.enable_grad():
            return self.loop(conditions, lambda call: answer(next(places), call))

    def present(self, module: nn.Module) -> AbstractContextManager[None]:
        """The weights are always there."""
        return nullcontext()

    def teleport(self, conditions: Conditions, outputs: Sequence[Tensor]) -> Call | Tensor:
        """Inputs of call `len(outputs)` after those outputs; the final latents if the run ends there."""
        seen = list[Call]()

        def denoise(call: Call) -> Tensor:
            seen.append(call)
            return outputs[len(seen) - 1] if len(seen) <= len(outputs) else torch.zeros_like(call.args[0])

        latents = self.loop(conditions, denoise)
        return seen[len(outputs)] if len(outputs) < len(seen) else latents

    def cut(self, call: Call) -> list[tuple[Call, int]]:
        """The call in parts of at most `micro.size` samples, each with its number of samples."""
        x, time, condition = call.args
        parts = [slice(*ends) for ends in self.micro.ranges(len(x))]
        made = [
            Call(args=(x[p], time[p], condition[p]), kwargs={}, step=call.step, timestep=call.timestep, part=call.part)
            for p in parts
        ]
        return [(part, len(part.args[0])) for part in made]

    def state(self, arrived: Call | Tensor) -> list[Tensor]:
        """The noisy sample of a call, or the final latents."""
        return [arrived if isinstance(arrived, Tensor) else arrived.args[0]]
