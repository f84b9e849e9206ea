"""What capture and sensitivity cost in forward passes of the bare model: `python -m tests.bench.passes`.

The built-in flux-dev, or a few blocks of DiT-XL/2 of their published width with random weights in bfloat16. Prints, by
call of the denoiser, CPU seconds of one thread and how many forwards of the bare model they are: a forward and backward
pass of the bare model, the capture of one batch, and its sensitivity sweep with what that does besides the passes.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import click
import torch
from torch import Tensor

from adatsq_pipe.cluster.inline_executor import InlineExecutor
from adatsq_pipe.pipeline.config import load
from adatsq_pipe.pipeline.plan import plan
from adatsq_pipe.stages.base.context import Context, WorkerRef
from adatsq_pipe.stages.calibration import capture, layer_rounding, sweep_worker
from adatsq_pipe.stages.calibration.sweep_worker import Sweep
from adatsq_pipe.stages.calibration.trajectories import read_trajectory
from adatsq_pipe.stages.calibration.unit_keys import SweepKey
from adatsq_pipe.stages.denoiser.adjoint import sweep
from adatsq_pipe.stages.denoiser.call import Call
from adatsq_pipe.stages.denoiser.denoiser import Denoiser
from adatsq_pipe.stages.denoiser.outputs import leaves
from adatsq_pipe.stages.scenes.builtin_models import builtin_models
from adatsq_pipe.storage.rundir import RunDir
from tests.bench import full_size_models
from tests.bench.full_size import CACHE

AIMS = {"capture": 1.15, "sweep": 4.5}
PARTS = ("weight_effects", "activation_effects", "rotate", "weight_grid", "quantize", "dequantize", "by_sample")
"""What a sweep does besides the passes of the model: functions that its modules import."""


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def median(work: Callable[[], object], repeats: int) -> float:
    """CPU seconds, after one time to warm up."""
    work()
    return statistics.median(cpu_seconds(work) for _ in range(repeats))


def context_of(model: Path, run: Path, *, dtype: str, captions: tuple[str, ...], call: dict[str, Any]) -> Context:
    """Of a run on one batch and one thread."""
    sets = [
        "compute.device=cpu", "compute.threads=1", f"compute.dtype={dtype}", f"data.prompts={list(captions)}",
        f"data.batch={len(captions)}", *(f"model.call.{key}={value}" for key, value in call.items()),
    ]  # fmt: skip
    place = RunDir.at(str(run))
    place.create()
    return plan(load(preset=None, file=None, sets=tuple(sets), model=str(model), previous=None), place)[1]


def captured(context: Context) -> float:
    """CPU seconds of the capture's tasks, in this process, without opening the model."""
    executor = _OneWorker()
    capture.run(context, executor, lambda done, total: None)
    return executor.seconds


class _OneWorker(InlineExecutor):
    """An executor in this process that counts the CPU seconds of its tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def stream(self, worker: WorkerRef, context: Context, keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
        self._slot.open(worker, context)
        start = time.process_time()
        for done in super().stream(worker, context, keys):
            self.seconds += time.process_time() - start
            yield done
            start = time.process_time()


def calls_of(denoiser: Denoiser, worker: Sweep, context: Context) -> list[Call]:
    """The calls of the recorded run, with their inputs."""
    calls = list[Call]()
    run = read_trajectory(context, 0)
    denoiser.replay(worker.shards[0], run.outputs, see=lambda place, call: calls.append(call))
    return calls


def forward_and_backward(denoiser: Denoiser, calls: list[Call]) -> None:
    """Of every call, with the gradient of the noisy sample alone, as nobody looks on."""
    for call in calls:
        samples = [x.detach().requires_grad_() for x in denoiser.state(call)]
        swapped = _with(call, samples[0])
        with torch.enable_grad():
            outputs = [x for x in leaves(denoiser.run(swapped)) if x.requires_grad]
            torch.autograd.grad(outputs, samples[:1], [torch.ones_like(x) for x in outputs])


def _with(call: Call, sample: Tensor) -> Call:
    """The call with another noisy sample, which stands first, by place or by name."""
    if call.args:
        return Call(**{**vars(call), "args": (sample, *call.args[1:])})
    return Call(**{**vars(call), "kwargs": {**call.kwargs, "hidden_states": sample}})


@contextmanager
def metered(seconds: dict[str, float]) -> Iterator[None]:
    """Inside, CPU seconds of the functions of PARTS are added up by name."""

    def timed(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return real(*args, **kwargs)
            finally:
                seconds[name] = seconds.get(name, 0.0) + time.process_time() - start

        return call

    with ExitStack() as patches:
        for module in (layer_rounding, sweep_worker):
            known = {name: timed(name, getattr(module, name)) for name in PARTS if hasattr(module, name)}
            if known:
                patches.enter_context(mock.patch.multiple(module, **known))
        yield


def measure(title: str, context_at: Callable[[Path], Context], repeats: int) -> None:
    """Print the table of one model; `context_at` makes the run in a folder."""
    with tempfile.TemporaryDirectory() as scratch:
        context = context_at(Path(scratch) / "first")
        captured(context)  # opens the model
        worker = Sweep(context)
        denoiser, run = worker.denoiser, read_trajectory(context, 0)
        calls = calls_of(denoiser, worker, context)
        count = len(calls)

        def forwards() -> None:
            with torch.no_grad():
                for call in calls:
                    denoiser.run(call)

        def passes() -> None:
            direction = worker._direction(SweepKey(0, 0), run.latents)
            sweep(denoiser, worker.shards[0], run, direction, worker.layers, lambda crossing: None)

        runs = iter(range(10_000))
        bare = median(forwards, repeats)
        rows = {
            "forward": bare,
            "forward and backward": median(lambda: forward_and_backward(denoiser, calls), repeats),
            "capture": statistics.median(
                captured(context_at(Path(scratch) / f"run{next(runs)}")) for _ in range(repeats)
            ),
            "sweep, nobody looks": median(passes, repeats),
            "sweep, the first": cpu_seconds(lambda: worker._swept(SweepKey(0, 0))),
            "sweep": median(lambda: worker._swept(SweepKey(0, 0)), repeats),
        }
        parts: dict[str, float] = {}
        with metered(parts):
            worker._swept(SweepKey(0, 0))
        rows |= {f"- of it {name}": spent for name, spent in sorted(parts.items(), key=lambda part: -part[1])}
        click.echo(
            f"\n{title}: {count} calls of {len(worker.shards[0].prompts)} captions, {len(worker.layers)} layers\n"
        )
        click.echo("| by call | CPU, ms | forwards | aim |\n| --- | --- | --- | --- |")
        for name, spent in rows.items():
            click.echo(f"| {name} | {1000 * spent / count:.1f} | {spent / bare:.2f} | {AIMS.get(name, '')} |")


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(["flux-dev", "dit-xl"]))
@click.option("--blocks", default=4, show_default=True, type=click.IntRange(1), help="Of DiT-XL/2, of 28.")
@click.option("--steps", default=3, show_default=True, type=click.IntRange(2))
@click.option("--captions", default=0, help="In the batch [default: 8, of DiT-XL/2 2].")
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1))
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE, help=f"Of the models [default: {CACHE}].")
def main(names: tuple[str, ...], blocks: int, steps: int, captions: int, repeats: int, cache: Path) -> None:
    """Print what capture and sensitivity cost in forward passes of the bare model."""
    torch.set_num_threads(1)
    if "flux-dev" in names or not names:
        words = tuple(
            f"{colour} {shape}" for shape in ("circle", "square", "cross") for colour in ("a red", "a blue", "a green")
        )
        measure(
            "flux-dev, float32",
            lambda run: context_of(
                builtin_models()["scenes/flux-dev"], run, dtype="float32", captions=words[: captions or 8],
                call={"num_inference_steps": steps},
            ),
            repeats,
        )  # fmt: skip
    if "dit-xl" in names or not names:
        known = full_size_models.MODELS["dit-xl"]
        model = full_size_models.written("dit-xl", cache, blocks=blocks)
        measure(
            f"DiT-XL/2, {blocks} blocks, bfloat16",
            lambda run: context_of(
                model, run, dtype="bfloat16", captions=known.captions[: captions or 2],
                call={"num_inference_steps": steps, **known.call},
            ),
            repeats,
        )  # fmt: skip


if __name__ == "__main__":
    main()
