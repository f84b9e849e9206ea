"""The command line as a reader meets it: order, help, examples, messages, and the frozen set of settings and flags."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from adatsq_pipe.pipeline.commands.cli import main
from adatsq_pipe.pipeline.commands.settings import settings_of
from adatsq_pipe.pipeline.config import kinds
from adatsq_pipe.storage.rundir import RunDir

FROZEN = Path(__file__).with_name("frozen_interface.json")
ORDER = [
    "run",
    "pick",
    "report",
    "status",
    "why",
    "sample",
    "compare",
    "export",
    "push",
    "inspect",
    "plan",
    "settings",
    "verify",
    "submit",
    "attach",
]
ON_PURPOSE = (
    "The settings or the flags changed. If on purpose: write the new interface, which the test's message shows, to "
    "tests/pipeline/commands/frozen_interface.json, and add a line to the changelog. A changed default changes the "
    "result of every run that does not set it."
)


def invoke(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, list(arguments), prog_name="adatsq-pipe", terminal_width=80)
    return done.exit_code, done.output


def interface() -> dict[str, object]:
    """Every table with its keys and defaults, and every command with its arguments and flags."""
    return {
        "settings": {name: {s.key: s.default for s in settings_of(kind)} for name, kind in kinds().items()},
        "commands": {
            name: [text for parameter in command.params for text in (*parameter.opts, *parameter.secondary_opts)]
            for name, command in main.commands.items()
        },
    }


def test_settings_and_flags_are_those_that_were_agreed() -> None:
    assert interface() == json.loads(FROZEN.read_text()), f"{ON_PURPOSE}\n{json.dumps(interface())}"


def test_the_help_lists_the_commands_in_the_order_of_use_and_cuts_no_line() -> None:
    code, output = invoke("--help")
    listed = re.findall(r"^  (\w+) {2,}\S", output.split("Commands:")[1], re.MULTILINE)
    assert code == 0 and listed == ORDER
    assert "..." not in output.split("Commands:")[1] and max(map(len, output.splitlines())) <= 80
    for name in ORDER:
        summary = main.commands[name].short_help or ""
        assert re.search(rf"^  {name} +{re.escape(summary)}$", output, re.MULTILINE), "one line for each command"


@pytest.mark.parametrize("name", ORDER)
def test_the_help_of_each_command_ends_with_an_example_that_its_parser_takes(name: str) -> None:
    code, output = invoke(name, "--help")
    *_, heading, line = output.rstrip().splitlines()
    assert code == 0 and heading.strip() == "Example:"
    program, command, *arguments = shlex.split(line)
    assert (program, command) == ("adatsq-pipe", name)
    named = main.commands[command]
    if command in ("export", "push"):
        arguments[0] = "."
    with click.Context(main) as parent:
        context = named.make_context(command, arguments, parent=parent)
    assert not context.args


def test_the_help_of_stages_names_them() -> None:
    _, output = invoke("run", "--help")
    assert "capture, fisher, hessian, solve, search, assemble, reference, evaluate" in " ".join(output.split())


@pytest.mark.run
@pytest.mark.parametrize("arguments", [["--help"], ["settings"], ["status", "--run-dir", "run"]])
def test_what_only_reads_settings_imports_no_heavy_library(arguments: list[str], tmp_path: Path) -> None:
    RunDir.open(str(tmp_path / "run")).create()
    script = (
        "import sys\n"
        "from adatsq_pipe.pipeline.commands.cli import main\n"
        f"main({arguments!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'ray', 'diffusers', 'transformers', 'matplotlib', 'pyarrow', 'zarr', 'fsspec', 'rich'}\n"
        "print('imported:', *sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "imported:\n"


@pytest.mark.parametrize("device", ["gpu", "mps", "xpu:0", "cuda:", "CUDA", ""])
def test_an_unknown_device_is_refused_in_one_line_before_anything_starts(tmp_path: Path, device: str) -> None:
    code, output = invoke("run", "--run-dir", str(tmp_path / "run"), "--set", f"compute.device='{device}'")
    assert code == 2 and not (tmp_path / "run").exists()
    assert output == f"error: compute.device: must be auto, cpu, cuda or cuda:N (got {device!r})\n"


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1"])
def test_torch_devices_of_this_project_are_accepted(device: str) -> None:
    code, output = invoke("status", "--set", f"compute.device={device}", "--run-dir", "/nowhere/at/all")
    assert "compute.device" not in output and "holds no run (it does not exist)" in output and code == 2


def test_verify_refuses_a_run_directory_that_does_not_exist_in_one_line() -> None:
    code, output = invoke("verify", "--run-dir", "/nowhere/at/all")
    assert code == 2 and output.startswith("error: ") and output.count("\n") == 1
