"""A whole tiny run as a job: handed in, lost with its cluster, handed in to the next one, watched, left, watched."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, TINY
from tests.head import Head, head
from tests.whole import harness

pytestmark = [pytest.mark.run, pytest.mark.extended]


def _submit(at: Head, run: Path, model: Path, *options: str) -> subprocess.Popen[str]:
    return at.command(
        "submit", "--address", at.address, "--no-pip", *options,
        "--", "run", "--run-dir", str(run), "--model", str(model), *TINY,
        "--set", "recipe.method=adatsq", "--set", "cluster.workers=1",
    )  # fmt: skip


def test_a_run_outlives_its_cluster_and_whoever_watches_it(undisturbed: Path, tiny_flux: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with head() as first:
        out, err = _submit(first, run, tiny_flux, "--no-wait").communicate(timeout=PATIENCE)
        assert out.startswith("submitted adatsq-"), err
        harness.wait_for(lambda: harness.count(run, "hessian") >= 1)
    before = {path: path.stat().st_mtime_ns for path in run.glob("capture/*/markers/**/*.json")}
    assert before and not (run / "model").exists()

    with head() as second:
        (sent := tmp_path / "sent").mkdir()
        (sent / "note.txt").write_text("travels")
        watching = _submit(second, run, tiny_flux, "--submission-id", "again", "--working-dir", str(sent))
        assert watching.stdout is not None
        shown = ""
        while "Running entrypoint" not in shown:
            shown += watching.stdout.readline()
        os.kill(watching.pid, signal.SIGINT)
        rest, err = watching.communicate(timeout=PATIENCE)
        follow = f"adatsq-pipe attach again --address {second.address}"
        assert watching.returncode == 130 and f"the job continues. Follow it again with: {follow}" in err, err
        assert shown.splitlines()[:2] == ["submitted again", f"follow    {follow}"]

        attached = second.command("attach", "again", "--address", second.address)
        out, err = attached.communicate(timeout=PATIENCE)
    assert attached.returncode == 0, (out, err)
    assert "evaluate: " in out and "dB on 1 captions" in out and out.endswith("done      again\n")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    harness.same(run, undisturbed)
    for token in (first.token, second.token):
        assert token not in shown + rest + out + err
        assert not [path for path in run.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
