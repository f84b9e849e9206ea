"""This package as a wheel, packed from the very files that run here: what the nodes of a cluster import.

Ray installs a wheel of a job together with the dependencies that it names, in front of the node's own packages, and
knows it by its file name alone. So this wheel names none (a second Ray would come with them; they travel as
requirements beside it), and its version bears a digest of its content. Installed, editable or not makes no difference.
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
    """Write the wheel of `packages` (with all below them) into `folder`. The same files give the same bytes."""
    files = dict(sorted(_files(packages)))
    digest = hashlib.sha256()
    for name, data in files.items():
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    about = importlib.metadata.distribution(distribution)
    version = f"{about.version}+{digest.hexdigest()[:16]}"
    stem = f"{distribution.replace('-', '_')}-{version}"
    facts = ["Metadata-Version: 2.1", f"Name: {distribution}", f"Version: {version}"]
    if python := about.metadata["Requires-Python"]:
        facts.append(f"Requires-Python: {python}")
    files[f"{stem}.dist-info/METADATA"] = _text(facts)
    files[f"{stem}.dist-info/WHEEL"] = _text(
        ["Wheel-Version: 1.0", f"Generator: {distribution}", "Root-Is-Purelib: true", "Tag: py3-none-any"]
    )
    record = f"{stem}.dist-info/RECORD"
    files[record] = _text([*(_recorded(name, data) for name, data in files.items()), f"{record},,"])
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)
    return path


def requirements(distribution: str, but: Sequence[str] = (), extras: Sequence[str] = ()) -> list[str]:
    """What the installed distribution requires, with the named `extras`, without the projects named in `but`."""
    found = [Requirement(text) for text in importlib.metadata.requires(distribution) or ()]
    kept = [r for r in found if r.name not in (*but, distribution) and _wanted(r, extras)]
    for requirement in kept:
        requirement.marker = None
    return sorted({str(requirement) for requirement in kept})


def _wanted(requirement: Requirement, extras: Sequence[str]) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in ("", *extras))


def accepted(distribution: str, project: str) -> Requirement:
    """What the installed distribution requires of one project: its range of versions."""
    found = [Requirement(text) for text in importlib.metadata.requires(distribution) or ()]
    return next(requirement for requirement in found if requirement.name == project)


def _files(packages: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    for package in packages:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.submodule_search_locations, package
        root = Path(next(iter(spec.submodule_search_locations)))
        for path in root.rglob("*"):
            inside = path.relative_to(root)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in inside.parts)
            if path.is_file() and not hidden:
                yield f"{package.replace('.', '/')}/{inside.as_posix()}", path.read_bytes()


def _text(lines: Sequence[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def _recorded(name: str, data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(data)}"
