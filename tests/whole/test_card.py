"""The card of a real run: its snippets run as they stand, and its checksums are those of the files."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import PATIENCE
from tests.whole import harness

pytestmark = pytest.mark.run
DRAW = """
import json
call = json.load(open("this folder/sampling.json"))["call"]
pipe.set_progress_bar_config(disable=True)
assert pipe("a red circle", **call, output_type="np").images.shape[-1] == 3
"""
WITHOUT = "import sys\nsys.modules['adatsq_pipe'] = None\n"


def test_the_snippets_run_as_they_stand_and_the_checksums_hold(undisturbed: Path, tmp_path: Path) -> None:
    model = undisturbed / "model"
    text = (model / "README.md").read_text("utf-8")
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "diffusers"
    (tmp_path / "this folder").symlink_to(model.resolve())
    sums = re.findall(r"^([0-9a-f]{64})  (\S+)$", text, re.MULTILINE)
    assert {name for _, name in sums} == {
        str(path.relative_to(model)) for path in model.rglob("*.safetensors")
    }  # fmt: skip
    for digest, name in sums:
        assert hashlib.sha256((model / name).read_bytes()).hexdigest() == digest
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text):
        assert (model / picture).is_file()
    (line,) = re.findall(r"^adatsq-pipe (export .*)$", text, re.MULTILINE)
    assert line == "export FOLDER --format self-contained --out self-contained"
    exported = tmp_path / "self-contained"
    done = harness.run("export", str(model), "--format", "self-contained", "--out", str(exported))
    assert done.returncode == 0, done.stderr
    home = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PATH": "/usr/bin", "HOME": str(tmp_path)}
    with_package, without = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for snippet in (with_package, WITHOUT + without):
        ran = subprocess.run(
            [sys.executable, "-c", snippet + DRAW],
            cwd=tmp_path,
            env=home,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert ran.returncode == 0, ran.stderr
    card = (exported / "README.md").read_text("utf-8")
    assert "trust_remote_code=True" in card and "import adatsq_pipe" not in card
    assert (exported / "sheet.png").is_file()
