"""What the commands say of a run whose files were damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from adatsq_pipe.pipeline.commands.cli import main
from adatsq_pipe.storage.published import PublishedModel
from adatsq_pipe.storage.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run directory that has published a model of one file."""
    made = RunDir(tmp_path / "run")
    made.create()
    folder = made.path / "published" / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    made.publish(folder, "a", "b")
    made.report.mkdir()
    PublishedModel(folder).vouch(made.report, [])
    return made


def test_verify_names_a_damaged_file_of_the_published_model_and_passes_without(run: RunDir) -> None:
    sound = CliRunner().invoke(main, ["verify", "--run-dir", str(run.path)])
    assert (sound.exit_code, sound.output) == (0, "1 units verified\n")
    (run.model / "model_index.json").write_text("[]")
    found = CliRunner().invoke(main, ["verify", "--run-dir", str(run.path)])
    assert found.exit_code == 1 and "1 of 1 units are damaged" in found.output
    assert f"published a/b: {run.path}/published/a/b/model_index.json does not have the digest" in found.output


def test_a_damaged_model_is_not_exported(run: RunDir) -> None:
    (run.model / "model_index.json").write_text("")
    done = CliRunner().invoke(main, ["export", str(run.path), "--format", "dequantized"])
    assert done.exit_code == 1 and done.output.startswith("error: ") and "model_index.json has 0 bytes" in done.output
    assert f"restore it with: adatsq-pipe run --run-dir {run.path}" in done.output
    assert not (run.path / "exports").exists()
