"""Whole tiny runs through the command line: the same bytes whatever is killed, wherever it runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.whole import harness

pytestmark = pytest.mark.whole
STAGES = ("capture", "fisher", "hessian", "solve", "search", "assemble", "evaluate")


@pytest.fixture(scope="module")
def undisturbed(tiny_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to, in one process."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = harness.run(*harness.tiny(folder, tiny_flux))
    assert done.returncode == 0, done.stderr
    for named in ("model", "summary", "pictures", "next"):
        assert any(line.startswith(named) for line in done.stdout.splitlines()), done.stdout
    return folder


def _quality(run: Path) -> object:
    return json.loads((run / "report" / "summary.json").read_text())["quality"]


def _same(run: Path, reference: Path) -> None:
    assert harness.digests(run / "model") == harness.digests(reference / "model")
    assert _quality(run) == _quality(reference)


def test_outputs(undisturbed: Path) -> None:
    summary = json.loads((undisturbed / "report" / "summary.json").read_text())
    assert set(summary["seconds"]) == {*STAGES, "reference"}
    assert 3 <= summary["bits"]["activations_mean"] <= summary["bits"]["budget"]
    assert summary["size"]["layer_ratio"] > 2
    config = json.loads((undisturbed / "model" / "transformer" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "adatsq"
    said = json.loads((undisturbed / "model" / "sampling.json").read_text())
    assert said["call"]["num_inference_steps"] == 4 and said["world"] == ""
    assert (undisturbed / "report" / "side_by_side.png").stat().st_size > 1000
    assert list(undisturbed.glob("search/*/units/front/front.parquet"))


def test_killed_in_the_middle_of_every_stage(undisturbed: Path, tiny_flux: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for place, stage in enumerate(STAGES):
        unit = 0 if stage == "assemble" else 2
        died = harness.run(*harness.tiny(run, tiny_flux), strike=f"{stage}:{unit}")
        assert died.returncode == -signal.SIGKILL, died.stderr
        kept = harness.count(run, stage)
        assert kept == unit, f"{stage}: {kept} markers after dying in unit {unit}"
        if place:
            assert list(run.glob(f"{STAGES[place - 1]}/*/markers/complete.json"))
    before = {p: p.stat().st_mtime_ns for p in run.glob("*/*/markers/**/*.json")}
    done = harness.run(*harness.tiny(run, tiny_flux))
    assert done.returncode == 0, done.stderr
    assert all(p.stat().st_mtime_ns == t for p, t in before.items() if p.exists() and "/path/" not in str(p))
    _same(run, undisturbed)


def test_sigterm_stops_between_units_and_resumes(undisturbed: Path, tiny_flux: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        harness.command(*harness.tiny(run, tiny_flux)), cwd=harness.ROOT, env=harness.environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    _wait_for(lambda: harness.count(run, "solve") >= 1, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "run again" in errors or "Go on with" in errors
    done = harness.run(*harness.tiny(run, tiny_flux))
    assert done.returncode == 0, done.stderr
    _same(run, undisturbed)


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], limit: float = 120) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "nothing happened in time"
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()


def _ray_process(driver: subprocess.Popen[str], title: str) -> psutil.Process:
    """A process of the driver's own Ray: raylet's children carry the actor's name as title."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for child in psutil.Process(driver.pid).children(recursive=True):
            try:
                if title in " ".join(child.cmdline()):
                    return child
            except psutil.Error:
                continue
        time.sleep(0.05)
    raise AssertionError(f"no process {title}")


def test_one_ray_worker_gives_the_same_bytes(undisturbed: Path, tiny_flux: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = harness.run(*harness.tiny(run, tiny_flux, "--set", "cluster.workers=1", executor="ray"))
    assert done.returncode == 0, done.stderr
    _same(run, undisturbed)


def test_two_ray_workers_survive_kills_of_worker_driver_and_director_and_a_sigterm(
    undisturbed: Path, tiny_flux: Path, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    run = tmp_path / "run"
    arguments = harness.tiny(run, tiny_flux, "--set", "cluster.workers=2", executor="ray")

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            harness.command(*arguments), cwd=harness.ROOT, env=harness.environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    first = start()
    _wait_for(lambda: harness.count(run, "capture") >= 1, first)
    _ray_process(first, "ray::_Host").kill()
    _wait_for(lambda: harness.count(run, "solve") >= 2, first)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()

    second = start()
    _wait_for(lambda: harness.count(run, "search") >= 1, second)
    _ray_process(second, "ray::_Director").kill()
    second.send_signal(signal.SIGTERM)
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 75, errors

    third = start()
    _, errors = third.communicate(timeout=200)
    assert third.returncode == 0, errors
    _same(run, undisturbed)


def test_a_running_cluster_is_joined(undisturbed: Path, tiny_flux: Path, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
    try:
        run = tmp_path / "run"
        arguments = harness.tiny(run, tiny_flux, "--address", cluster.address, executor="ray")
        done = harness.run(*arguments, "--set", "cluster.workers=2")
    finally:
        cluster.shutdown()
    assert done.returncode == 0, done.stderr
    _same(run, undisturbed)


def test_nothing_to_do_imports_no_torch_and_starts_no_ray(undisturbed: Path, tiny_flux: Path) -> None:
    script = (
        "import sys\n"
        "from adatsq_pipe.pipeline.cli import main\n"
        f"sys.argv = ['adatsq-pipe', 'run', '--run-dir', {str(undisturbed)!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = sorted({'torch', 'ray', 'diffusers', 'zarr'} & set(sys.modules))\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout


def test_another_budget_runs_search_assemble_and_evaluate_only(undisturbed: Path, tiny_flux: Path) -> None:
    before = {p: p.stat().st_mtime_ns for s in STAGES[:4] for p in undisturbed.glob(f"{s}/*/markers/**/*.json")}
    asked = ("--run-dir", str(undisturbed), "--set", "search.budget=4.5")
    why = harness.run("why", *asked).stdout.splitlines()
    assert ["would run" in line for line in why] == [False] * 4 + [True] * 3
    assert "reads.search.budget: 4.0 -> 4.5" in why[4]
    done = harness.run("run", *asked)
    assert done.returncode == 0, done.stderr
    after = {p: p.stat().st_mtime_ns for s in STAGES[:4] for p in undisturbed.glob(f"{s}/*/markers/**/*.json")}
    assert after == before
    back = harness.run("run", "--run-dir", str(undisturbed), "--set", "search.budget=4.0")
    assert back.returncode == 0 and "started" not in back.stderr, back.stderr


@pytest.mark.parametrize("name", ["z-image", "wan", "dit"])
def test_other_families_run_through(name: str, family: Callable[[str], Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    labels = ["--set", "data.prompts=['1', '2', '3']", "--set", "evaluate.prompts=['4']"] if name == "dit" else []
    done = harness.run(*harness.tiny(run, family(name), *labels))
    assert done.returncode == 0, done.stderr
    summary = json.loads((run / "report" / "summary.json").read_text())
    assert 0 < summary["quality"]["latent_error"]["mean"] < 1
