"""Memory that processes of one machine take for the same model: `python -m tests.bench.shared_weights`. Linux only.

DiT-XL/2 with random weights, stored in float32, is opened in bfloat16 by two processes at once, as workers open it.
Each touches every page of the weights. Prints, of each process and of both, with and without a cast copy: resident
memory (RSS), the same with shared pages divided by those who share them (PSS), and what is its own (USS).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
import torch

from adatsq_pipe.stages.denoiser.loading import SLOT, ModelRequest
from adatsq_pipe.storage.cast_copy import cast_bytes, home_of
from tests.bench.full_size_models import dit_xl

DTYPE = "bfloat16"
OPENED = "opened"


def memory_of(process: int) -> dict[str, int]:
    """RSS, PSS and USS of a process, in bytes."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text("utf-8")
    kept = {name: 1024 * int(size) for name, size in re.findall(r"^(\w+):\s*(\d+) kB", text, re.MULTILINE)}
    return {"RSS": kept["Rss"], "PSS": kept["Pss"], "USS": kept["Private_Clean"] + kept["Private_Dirty"]}


def hold(folder: Path, home: Path | None) -> None:
    """Open the model as a worker does, touch its weights, say so, and keep it until the input ends."""
    torch.set_num_threads(1)
    denoiser = SLOT.open(ModelRequest(folder=folder, dtype=DTYPE, device="cpu", cast_home=home))
    for tensor in denoiser.transformer.state_dict().values():
        tensor.contiguous().view(-1).view(torch.uint8)[::4096].sum()
    print(OPENED, flush=True)
    sys.stdin.read()


@contextmanager
def holder(folder: Path, home: Path | None) -> Iterator[int]:
    """The number of a process that holds the model inside."""
    command = [sys.executable, "-m", "tests.bench.shared_weights", "--hold", str(folder)]
    command += ["--home", str(home)] if home else []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            if not any(line.strip() == OPENED for line in process.stdout):
                raise click.ClickException(f"a process ended with {process.wait()} before it had opened the model")
            yield process.pid
        finally:
            process.stdin.close()


def table(folder: Path, run: Path, processes: int) -> Iterator[str]:
    """Lines of the table, as they are measured."""
    yield f"{'':<10}{'process':>10}{'RSS, MiB':>12}{'PSS, MiB':>12}{'USS, MiB':>12}"
    for name, home in (("own copies", None), ("shared", home_of(run))):
        with ExitStack() as stack:
            held = [stack.enter_context(holder(folder, home)) for _ in range(processes)]
            found = [memory_of(process) for process in held]
        for number, one in enumerate(found, 1):
            yield f"{name:<10}{number:>10}" + "".join(f"{size / 2**20:>12.0f}" for size in one.values())
        yield f"{name:<10}{'all':>10}{'':>12}{sum(one['PSS'] for one in found) / 2**20:>12.0f}"
    yield f"the copy takes {cast_bytes(run) / 2**20:.0f} MiB of disk until the run ends"


@click.command()
@click.option("--processes", default=2, show_default=True)
@click.option("--blocks", default=28, show_default=True, help="Transformer blocks; 28 as in DiT-XL/2.")
@click.option("--cache", type=click.Path(path_type=Path), help="Where the model and its copy are kept [default: not].")
@click.option("--hold", "held", type=click.Path(path_type=Path), hidden=True)
@click.option("--home", type=click.Path(path_type=Path), hidden=True)
def main(processes: int, blocks: int, cache: Path | None, held: Path | None, home: Path | None) -> None:
    if held is not None:
        hold(held, home)
        return
    with tempfile.TemporaryDirectory() as place:
        base = cache or Path(place)
        folder = base / f"dit-xl-{blocks}-float32"
        if not folder.exists():
            torch.manual_seed(0)
            dit_xl(blocks).save_pretrained(base / "unfinished")
            shutil.move(base / "unfinished", folder)
        weights = sum(path.stat().st_size for path in folder.glob("*/*.safetensors"))
        click.echo(f"{weights / 2**20:.0f} MiB of float32 files, opened in {DTYPE}")
        shutil.rmtree(base / "run", ignore_errors=True)
        for line in table(folder, base / "run", processes):
            click.echo(line)


if __name__ == "__main__":
    main()
