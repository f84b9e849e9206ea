"""Run directories that are none, or may not be read or written: one line for each command, and no traceback."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from adatsq_pipe.pipeline.commands.cli import main
from adatsq_pipe.storage.damage import DamageNotes
from adatsq_pipe.storage.manifest import Manifest
from adatsq_pipe.storage.rundir import RunDir

COMMANDS = {
    "run": ["run", "--executor", "inline", "--run-dir"],
    "compare": ["compare", "--executor", "inline", "--run-dir"],
    "status": ["status", "--run-dir"],
    "why": ["why", "--run-dir"],
    "verify": ["verify", "--run-dir"],
    "pick": ["pick", "--mean-bits", "3.6"],
    "report": ["report"],
}
of_every_command = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)


def line_of(*arguments: str) -> tuple[int, str]:
    """The exit code and the one line that the command ends with."""
    done = CliRunner().invoke(main, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.output.startswith("error: ") and done.output.count("\n") == 1, done.output
    return done.exit_code, done.output


@of_every_command
@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_run_directory_that_is_a_file_or_below_one(command: list[str], name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    code, line = line_of(*command, str(tmp_path / name))
    assert code == 2 and str(tmp_path / name) in line


@of_every_command
def test_a_folder_that_holds_something_else_is_wrong_usage(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    code, line = line_of(*command, str(tmp_path))
    assert code == 2 and "holds no run" in line and [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@of_every_command
def test_a_run_of_another_format_is_a_failure(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": 99}')
    code, line = line_of(*command, str(tmp_path))
    assert code == 1 and "was written in format 99" in line


@pytest.mark.parametrize("more", [["export", "--format", "dequantized"], ["push", "org/name"]], ids=["export", "push"])
def test_a_run_that_is_not_finished_is_a_failure_and_what_is_no_run_wrong_usage(
    more: list[str], tmp_path: Path
) -> None:
    place = tmp_path / "run"
    place.mkdir()
    code, line = line_of(more[0], str(place), *more[1:])
    assert code == 2 and "run holds no run (it is empty)" in line
    RunDir(place).create()
    code, line = line_of(more[0], str(place), *more[1:])
    assert code == 1 and f"run is not finished; finish it with: adatsq-pipe run --run-dir {place}" in line


@of_every_command
def test_a_run_directory_that_may_not_be_read(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, *_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    RunDir(tmp_path).create()
    monkeypatch.setattr("adatsq_pipe.storage.rundir.read_json_object", refused)
    code, line = line_of(*command, str(tmp_path))
    assert code == 1
    assert line == f"error: {tmp_path}/run.json: Permission denied; check that the path is right and its permissions\n"


def test_export_to_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "model" / "transformer").mkdir(parents=True)
    config = tmp_path / "model" / "transformer" / "config.json"
    config.write_text('{"quantization_config": {"quant_method": "adatsq"}}')
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "X", "transformer": ["diffusers", "Y"]}')
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "out"
    code, line = line_of("export", str(tmp_path / "model"), "--format", "dequantized", "--out", str(out))
    assert code == 1 and str(tmp_path / "file") in line and (tmp_path / "file").read_text() == "mine"


def test_a_config_file_that_is_a_folder(tmp_path: Path) -> None:
    code, line = line_of("run", "--run-dir", str(tmp_path / "run"), "--config", str(tmp_path))
    assert code == 2 and line == f"error: --config {tmp_path} cannot be read (Is a directory)\n"


def test_verify_finds_damage_in_a_run_directory_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "damage/a.json")

    run = RunDir(tmp_path)
    run.create()
    manifest = run.manifest("solve", "f" * 64)
    (manifest.open_unit("a") / "bytes").write_text("right")
    manifest.commit("a")
    (manifest.unit_folder("a") / "bytes").write_text("wrong")
    monkeypatch.setattr(DamageNotes, "add", refused)
    done = CliRunner().invoke(main, ["verify", "--run-dir", str(tmp_path)])
    assert done.exit_code == 1 and "solve a: " in done.output and "1 of 1 units are damaged" in done.output


def test_verify_passes_over_no_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RunDir(tmp_path).create()
    (tmp_path / "solve").mkdir()
    real = os.scandir

    def refused(path: str) -> object:
        if str(path).endswith("solve"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refused)
    code, line = line_of("verify", "--run-dir", str(tmp_path))
    assert code == 1 and line.startswith(f"error: {tmp_path}/solve: Permission denied")


def test_verify_names_files_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "units/a/bytes")

    run = RunDir(tmp_path)
    run.create()
    manifest = run.manifest("solve", "f" * 64)
    (manifest.open_unit("a") / "bytes").write_text("right")
    manifest.commit("a")
    monkeypatch.setattr(Manifest, "verify", refused)
    done = CliRunner().invoke(main, ["verify", "--run-dir", str(tmp_path)])
    assert done.exit_code == 1 and "solve a: units/a/bytes cannot be read (Permission denied)" in done.output
