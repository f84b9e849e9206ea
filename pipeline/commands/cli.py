"""The command line. Exit codes: 0 done, 1 failed, 2 wrong usage, 75 stopped (run again)."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from io import TextIOWrapper

import click

from adatsq_pipe.pipeline.commands import remote
from adatsq_pipe.pipeline.commands.compare import compare
from adatsq_pipe.pipeline.commands.export import export
from adatsq_pipe.pipeline.commands.inspect import inspect
from adatsq_pipe.pipeline.commands.pick import pick
from adatsq_pipe.pipeline.commands.plan import plan
from adatsq_pipe.pipeline.commands.push import push
from adatsq_pipe.pipeline.commands.report import report
from adatsq_pipe.pipeline.commands.run import run
from adatsq_pipe.pipeline.commands.sample import sample
from adatsq_pipe.pipeline.commands.settings import settings
from adatsq_pipe.pipeline.commands.status import status, verify, why

COMMANDS = (
    run,
    pick,
    report,
    status,
    why,
    sample,
    compare,
    export,
    push,
    inspect,
    plan,
    settings,
    verify,
    remote.submit,
    remote.attach,
)
"""The commands in the order of use, as the help lists them."""


class OrderedGroup(click.Group):
    """A group whose help lists the commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=OrderedGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExample:\n  adatsq-pipe run --run-dir adatsq-run",
)
@click.version_option(package_name="adatsq-pipe")
def main() -> None:
    """Quantize a diffusion transformer, in stages that resume."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A caption or a path that the terminal's encoding cannot write must not end a run.
            stream.reconfigure(errors="backslashreplace")
    atexit.register(gc.freeze)  # as the program ends, nothing of what it holds need be searched for garbage
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


for _command in COMMANDS:
    main.add_command(_command)


if __name__ == "__main__":
    main()
