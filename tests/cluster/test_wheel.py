"""The wheel that nodes get: the files that run here, no dependencies, a name that changes with the content."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from adatsq_pipe.cluster import wheel
from adatsq_pipe.pipeline.commands.remote import NAME, ROOMS
from adatsq_pipe.storage.fingerprint import file_digest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel.pack(NAME, ROOMS, tmp_path_factory.mktemp("packed"))


def test_it_holds_every_tracked_file_of_the_rooms(packed: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "pipeline", "stages", "storage", "cluster"], cwd=ROOT, capture_output=True, text=True
    )
    assert tracked.returncode == 0, tracked.stderr
    wanted = {f"adatsq_pipe/{name}" for name in tracked.stdout.splitlines() if (ROOT / name).exists()}
    held = set(zipfile.ZipFile(packed).namelist())
    assert wanted <= held
    assert not [name for name in held if "__pycache__" in name or "/." in name or name.startswith("/")]


@pytest.mark.run
def test_it_names_no_dependencies_and_pip_installs_it(packed: Path, tmp_path: Path) -> None:
    archive = zipfile.ZipFile(packed)
    metadata = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
    assert "Requires-Dist" not in metadata and "Requires-Python: " in metadata
    target = tmp_path / "target"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--target", target, packed],
        check=True, capture_output=True,
    )  # fmt: skip
    assert file_digest(target / "adatsq_pipe/stages/weights/solve.py") == file_digest(ROOT / "stages/weights/solve.py")
    assert (target / "adatsq_pipe/pipeline/presets/w4a4.toml").exists()


def test_the_same_files_are_the_same_wheel_and_others_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []
    for folder, text in (("a", "x = 1\n"), ("b", "x = 1\n"), ("c", "x = 2\n")):
        (tmp_path / folder).mkdir()
        (package / "__init__.py").write_text(text)
        made.append(wheel.pack(NAME, ["some_package"], tmp_path / folder))
    assert made[0].name == made[1].name != made[2].name
    assert made[0].read_bytes() == made[1].read_bytes()


def test_its_record_lists_every_file_with_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_package"
    for name in ("__init__.py", "__pycache__/x.pyc", ".hidden/y.py", "inner/data.toml"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("abc")
    monkeypatch.syspath_prepend(str(tmp_path))
    archive = zipfile.ZipFile(wheel.pack(NAME, ["some_package"], tmp_path))
    record = next(name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
    lines = archive.read(record).decode().splitlines()
    of_abc = "sha256=ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0,3"
    assert lines[:2] == [f"some_package/__init__.py,{of_abc}", f"some_package/inner/data.toml,{of_abc}"]
    assert lines[-1] == f"{record},,"
    assert [line.partition(",")[0] for line in lines] == archive.namelist()
    assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_requirements_are_the_packages_own_without_ray_and_extras() -> None:
    found = wheel.requirements(NAME, exclude=("ray",))
    names = {text.partition(">")[0].partition("<")[0].partition("=")[0].partition("[")[0] for text in found}
    assert {"torch", "diffusers", "zarr"} <= names
    assert not names & {"ray", "pytest", "ruff"}
    assert wheel.requirement_on(NAME, "ray").specifier.contains("2.60.0")


def test_an_extra_brings_its_own() -> None:
    plain, more = wheel.requirements(NAME, exclude=("ray",)), wheel.requirements(NAME, exclude=("ray",), extras=("s3",))
    assert [r.split(">")[0] for r in sorted(set(more) - set(plain))] == ["s3fs"]
    assert not any(";" in r for r in more)
