"""Which bytes of a unit are hashed before its tensors are read: those of the tensors that are read, and no more."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from adatsq_pipe.storage import tensors
from adatsq_pipe.storage.errors import DamagedUnit
from adatsq_pipe.storage.manifest import Manifest
from tests.support import made_units as made
from tests.support.folder_form import unpack


def _arrays(tmp_path: Path, *, stacked: bool, folder_form: bool = False) -> Manifest:
    manifest = Manifest("stage", tmp_path)
    written = {f"rows:{i}": torch.full((2, 3 + i % 2), float(i + 1)).bfloat16() for i in range(5)}
    folder = manifest.open_unit("u")
    (tensors.write_stacked if stacked else tensors.write)(folder, written, {"start": 3})
    if folder_form:
        unpack(folder)
    (folder / "notes.json").write_bytes(b"{}")
    manifest.commit("u")
    return manifest


PACK = "units/u/tensors.zarr.zip"


def _place(tmp_path: Path, value: float) -> int:
    """Where the numbers of the tensor of this value lie."""
    return (tmp_path / PACK).read_bytes().index(torch.full((6,), value).bfloat16().view(torch.uint8).numpy().tobytes())


def test_of_stacked_tensors_only_those_read_are_hashed(tmp_path: Path) -> None:
    manifest = _arrays(tmp_path, stacked=True)
    made.spoil(tmp_path / PACK, _place(tmp_path, 3.0) + 5)
    manifest.verify("u", tensors=["rows:0", "rows:4", "rows:1"])
    for once in (False, True):
        for names in (["rows:2"], ["rows:0", "rows:2"], ["rows:9"]):
            with pytest.raises(DamagedUnit, match=r"tensors\.zarr\.zip does not have the digest"):
                manifest.verify("u", tensors=names, once=once)
        with pytest.raises(DamagedUnit, match="digest"):
            manifest.verify("u", once=once)


def test_a_unit_that_is_done_again_is_compared_with_its_own_digests(tmp_path: Path) -> None:
    manifest = _arrays(tmp_path, stacked=True)
    manifest.verify("u", tensors=["rows:0"], once=True)
    size = (tmp_path / PACK).stat().st_size
    manifest.discard("u")
    others = {f"rows:{i}": torch.full((2, 3 + i % 2), 9.0).bfloat16() for i in range(5)}
    tensors.write_stacked(manifest.open_unit("u"), others, {"start": 3})
    manifest.commit("u")
    assert (tmp_path / PACK).stat().st_size == size
    manifest.verify("u", tensors=["rows:0", "rows:1"], once=True)


def test_a_stacked_tensor_is_hashed_once_as_long_as_its_file_stays(tmp_path: Path) -> None:
    manifest = _arrays(tmp_path, stacked=True)
    manifest.verify("u", tensors=["rows:2"], once=True)
    stat = (tmp_path / PACK).stat()
    with (tmp_path / PACK).open("r+b") as file:
        file.seek(_place(tmp_path, 3.0))
        file.write(b"\0")
    os.utime(tmp_path / PACK, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    manifest.verify("u", tensors=["rows:2"], once=True)
    os.utime(tmp_path / PACK, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(DamagedUnit, match="digest"):
        manifest.verify("u", tensors=["rows:2"], once=True)


@pytest.mark.parametrize("place", ["first", "between", "last"])
def test_what_leads_to_the_tensors_is_always_hashed(place: str, tmp_path: Path) -> None:
    """A description, a header before a tensor's numbers, and the list at the end."""
    manifest = _arrays(tmp_path, stacked=True)
    size = (tmp_path / PACK).stat().st_size
    made.spoil(tmp_path / PACK, {"first": 70, "between": _place(tmp_path, 3.0) - 1, "last": size - 1}[place])
    with pytest.raises(DamagedUnit, match="digest"):
        manifest.verify("u", tensors=["rows:0"])


@pytest.mark.parametrize("name", ["parts.json", "notes.json"])
def test_files_beside_the_tensors_are_always_hashed(name: str, tmp_path: Path) -> None:
    manifest = _arrays(tmp_path, stacked=True)
    made.spoil(tmp_path / "units/u" / name)
    with pytest.raises(DamagedUnit, match=name):
        manifest.verify("u", tensors=["rows:0"])
    made.spoil(tmp_path / "units/u" / name)
    manifest.verify("u", tensors=["rows:0"])


def test_tensors_without_digests_of_their_own_are_hashed_together(tmp_path: Path) -> None:
    manifest = _arrays(tmp_path, stacked=False)
    manifest.verify("u", tensors=["rows:0"])
    made.spoil(tmp_path / PACK, _place(tmp_path, 3.0))
    with pytest.raises(DamagedUnit, match="digest"):
        manifest.verify("u", tensors=["rows:0"])


@pytest.mark.parametrize(("stacked", "chunk"), [(True, "stack0/c/1/0/0"), (False, "rows:2/c/0/0")])
def test_of_tensors_in_a_folder_only_those_read_are_hashed(stacked: bool, chunk: str, tmp_path: Path) -> None:
    """As version 0.1 wrote them."""
    manifest = _arrays(tmp_path, stacked=stacked, folder_form=True)
    folder = tmp_path / "units/u/tensors.zarr"
    assert manifest.verify("u").files.keys() > {"tensors.zarr/zarr.json", f"tensors.zarr/{chunk}"}
    made.spoil(folder / chunk)
    manifest.verify("u", tensors=["rows:0", "rows:4"])
    with pytest.raises(DamagedUnit, match="digest"):
        manifest.verify("u", tensors=["rows:0", "rows:2"])
    made.spoil(folder / "zarr.json")
    with pytest.raises(DamagedUnit, match=r"zarr\.json"):
        manifest.verify("u", tensors=["rows:0"])
