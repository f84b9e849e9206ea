"""Packs this package as a wheel, from the files that run here, for the nodes of a cluster to import.

Ray installs a job's wheel together with the dependencies that it declares, in front of the node's own packages, and
caches it by its file name alone. So this wheel declares none (they would bring a second Ray; they are sent beside it
as requirements), and its version contains a digest of its content. An editable install works the same way.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement

_EPOCH = (1980, 1, 1, 0, 0, 0)


def pack(distribution: str, packages: Sequence[str], folder: Path) -> Path:
    """Write a wheel of `packages` and their subpackages into `folder`. The same files give the same bytes."""
    files = dict(sorted(_files(packages)))
    digest = hashlib.sha256()
    for name, data in files.items():
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    installed = importlib.metadata.distribution(distribution)
    version = f"{installed.version}+{digest.hexdigest()[:16]}"
    stem = f"{distribution.replace('-', '_')}-{version}"
    metadata = ["Metadata-Version: 2.1", f"Name: {distribution}", f"Version: {version}"]
    if python := installed.metadata["Requires-Python"]:
        metadata.append(f"Requires-Python: {python}")
    files[f"{stem}.dist-info/METADATA"] = _text(metadata)
    files[f"{stem}.dist-info/WHEEL"] = _text(
        ["Wheel-Version: 1.0", f"Generator: {distribution}", "Root-Is-Purelib: true", "Tag: py3-none-any"]
    )
    record = f"{stem}.dist-info/RECORD"
    files[record] = _text([*(_record_line(name, data) for name, data in files.items()), f"{record},,"])
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)
    return path


def requirements(distribution: str, exclude: Sequence[str] = (), extras: Sequence[str] = ()) -> list[str]:
    """What the installed distribution requires here with these `extras`, except the projects in `exclude`; sorted."""
    selected = [
        requirement
        for requirement in _declared(distribution)
        if requirement.name not in (*exclude, distribution) and _applies(requirement, extras)
    ]
    for requirement in selected:
        requirement.marker = None
    return sorted({str(requirement) for requirement in selected})


def _applies(requirement: Requirement, extras: Sequence[str]) -> bool:
    """Whether the requirement's marker holds on this machine, with one of the extras or without any."""
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras))


def requirement_on(distribution: str, project: str) -> Requirement:
    """The versions of `project` that the installed distribution accepts."""
    return next(requirement for requirement in _declared(distribution) if requirement.name == project)


def _declared(distribution: str) -> list[Requirement]:
    return [Requirement(text) for text in importlib.metadata.requires(distribution) or ()]


def _files(packages: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    for package in packages:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.submodule_search_locations, package
        root = Path(next(iter(spec.submodule_search_locations)))
        for path in root.rglob("*"):
            relative = path.relative_to(root)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
            if path.is_file() and not hidden:
                yield f"{package.replace('.', '/')}/{relative.as_posix()}", path.read_bytes()


def _text(lines: Sequence[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def _record_line(name: str, data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(data)}"
