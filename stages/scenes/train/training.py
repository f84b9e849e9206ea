"""The training loop of every part of a built-in model: AdamW, a cosine schedule, a running average, resumable.

A part's state is one safetensors file. The step's index seeds everything that the step draws, so a killed and resumed
run ends with the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import copy
import csv
import json
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from adatsq_pipe.stages.denoiser import device
from adatsq_pipe.storage.files import write_bytes

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where parts are trained. Random numbers are drawn on the CPU, so they are the same on every device."""
WARM_UP = 200
PRINT_EVERY = 250


def make_deterministic() -> None:
    """Use PyTorch's deterministic algorithms in this process. A trainer calls this before it trains a part."""
    device.settle(device=DEVICE.type, threads=torch.get_num_threads())


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by integers and words, one for each purpose and step."""
    words = [p if isinstance(p, int) else zlib.crc32(p.encode()) for p in parts]
    return torch.Generator().manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))


def rate_at(step: int, steps: int) -> float:
    """Share of the peak learning rate at `step` of `steps`: linear warm-up, then a cosine down to 1 %."""
    warm = min(WARM_UP, steps // 5)
    if step < warm:
        return (step + 1) / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a denoiser is trained: steps, peak learning rate, samples per step, and the seed of its batches."""

    steps: int
    rate: float
    batch: int
    seed: int
    compile: bool
    half: bool = False
    """Compute losses under bfloat16 autocast."""

    def compiled(self, model: nn.Module) -> Any:
        """The model that losses call: compiled, if `compile` is set."""
        return torch.compile(model, dynamic=False) if self.compile else model


def train_part(
    name: str,
    model: nn.Module,
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    rate: float,
    work: Path,
    every: int = 250,
    average: float = 0.999,
    decay: float = 0.01,
    half: bool = False,
) -> nn.Module:
    """Train `model` on DEVICE for `steps` steps of `loss(step)`; return the running average of its weights, on the CPU.

    `work/NAME.safetensors` is the checkpoint (every `every` steps), `work/NAME_loss.csv` holds the mean loss of each
    100 steps. A finished part is loaded without training. `average` is the decay of the running average, `decay` is
    AdamW's weight decay. `half` computes losses under bfloat16 autocast; weights stay float32.
    """
    model.to(DEVICE)
    smooth = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=decay, fused=True)
    path = work / f"{name}.safetensors"
    start, curve = _load(path, model, smooth, optimizer)
    for step in _shown(name, start, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_at(step, steps)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=half):
            value = loss(step)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        keep = min(average, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(smooth.parameters()), list(model.parameters()), 1 - keep)
        curve.add(step, value.item())
        if (step + 1) % every == 0 or step + 1 == steps:
            _save(path, step + 1, curve, model, smooth, optimizer)
            curve.write(work / f"{name}_loss.csv")
    return smooth.eval().cpu()


@dataclass
class _Curve:
    """Mean loss of each 100 steps, and the losses since the last row."""

    rows: list[list[float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)

    def add(self, step: int, loss: float) -> None:
        self.recent.append(loss)
        if (step + 1) % 100 == 0:
            self.rows.append([step + 1, round(sum(self.recent) / len(self.recent), 6)])
            self.recent = []

    def write(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["step", "loss"], *self.rows])


def _shown(name: str, start: int, stop: int) -> Iterator[int]:
    columns = (TextColumn(name), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=stop, completed=start)
        for step in range(start, stop):
            yield step
            progress.update(task, completed=step + 1)
            if not progress.console.is_terminal and (step + 1) % PRINT_EVERY == 0:
                print(f"{name} {step + 1}/{stop}", flush=True)


def _save(
    path: Path, step: int, curve: _Curve, model: nn.Module, smooth: nn.Module, optimizer: torch.optim.AdamW
) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in smooth.state_dict().items()}
    for k, parameter in model.named_parameters():
        if state := optimizer.state.get(parameter):
            tensors |= {f"first.{k}": state["exp_avg"], f"second.{k}": state["exp_avg_sq"]}
    tensors = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
    # One entry, because safetensors writes several in an order that differs between processes.
    write_bytes(path, save(tensors, {"progress": json.dumps({"step": step} | vars(curve))}))


def _load(path: Path, model: nn.Module, smooth: nn.Module, optimizer: torch.optim.AdamW) -> tuple[int, _Curve]:
    if not path.exists():
        return 0, _Curve()
    with safe_open(path, "pt") as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - a safetensors handle is not iterable
        progress = json.loads(file.metadata()["progress"])
    for prefix, module in (("model.", model), ("average.", smooth)):
        module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    step = progress.pop("step")
    for k, parameter in model.named_parameters():
        if f"first.{k}" in tensors:
            first, second = tensors[f"first.{k}"], tensors[f"second.{k}"]
            optimizer.state[parameter] = {"step": torch.tensor(float(step)), "exp_avg": first, "exp_avg_sq": second}
    return step, _Curve(**progress)
