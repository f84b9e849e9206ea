"""Tensors are stored as their own bits, uncompressed, and read back unchanged. Checked with zarr and numpy alone."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from safetensors import safe_open
from zarr.storage import ZipStore

from adatsq_pipe.storage import arrays, tensors
from adatsq_pipe.storage.pack import contents
from adatsq_pipe.storage.weights import LazyTensor
from tests.support.folder_form import unpack
from tests.support.mapping import MAPS, file_of

PLAIN = [torch.float32, torch.float16, torch.float64, torch.uint8, torch.int8, torch.int32, torch.int64, torch.bool]
VIEWED = [(torch.bfloat16, "uint16"), (torch.float8_e4m3fn, "uint8")]


@pytest.mark.parametrize("dtype", [*PLAIN, *(dtype for dtype, _ in VIEWED)])
def test_tensors_come_back_as_they_were(dtype: torch.dtype, tmp_path: Path) -> None:
    x = (torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    tensors.write(tmp_path, {"b.c:d": x, "a": torch.zeros(4)}, {"n": [1, 2]})
    back = tensors.read(tmp_path)
    assert list(back) == ["a", "b.c:d"] and back["b.c:d"].dtype == dtype
    assert torch.equal(back["b.c:d"].float(), x.float()) and torch.equal(back["a"], torch.zeros(4))
    assert list(tensors.read(tmp_path, ["b.c:d"])) == ["b.c:d"]


def test_a_group_is_one_file_that_zarr_reads(tmp_path: Path) -> None:
    x = torch.tensor([[1.0, -2.5], [3.0, 0.0]])
    tensors.write(tmp_path, {"x": x.T, "zeros": torch.zeros(3)}, {"n": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["tensors.zarr.zip"]
    with zipfile.ZipFile(tmp_path / "tensors.zarr.zip") as pack:
        assert pack.namelist() == ["x/zarr.json", "zarr.json", "zeros/zarr.json", "x/c/0/0", "zeros/c/0"]
        assert pack.read("x/c/0/0") == np.array([[1.0, 3.0], [-2.5, 0.0]], "<f4").tobytes()
        assert pack.read("zeros/c/0") == bytes(12), "a chunk of zeros is written too"
    group = zarr.open_group(ZipStore(tmp_path / "tensors.zarr.zip"), mode="r")
    assert dict(group.attrs) == {"n": 1} and dict(group["x"].attrs) == {}
    assert group["x"][...].tolist() == [[1.0, 3.0], [-2.5, 0.0]]  # type: ignore[index, union-attr]


@pytest.mark.parametrize(("dtype", "bits"), VIEWED)
def test_what_zarr_has_no_type_for_is_stored_as_its_bits(dtype: torch.dtype, bits: str, tmp_path: Path) -> None:
    tensors.write(tmp_path, {"x": torch.tensor([1.0, -2.0]).to(dtype)})
    array = zarr.open_group(ZipStore(tmp_path / "tensors.zarr.zip"), mode="r")["x"]
    by_hand = {"uint16": [0x3F80, 0xC000], "uint8": [0x38, 0xC0]}[bits]
    assert str(array.dtype) == bits and list(array[...]) == by_hand  # type: ignore[union-attr, arg-type, index]
    assert dict(array.attrs) == {"dtype": str(dtype).removeprefix("torch.")}


def test_empty_tensors_and_single_numbers_come_back(tmp_path: Path) -> None:
    tensors.write(tmp_path, {"none": torch.zeros(0, 3), "one": torch.tensor(7)})
    back = tensors.read(tmp_path)
    assert back["none"].shape == (0, 3) and back["one"].shape == () and int(back["one"]) == 7
    tensors.write_stacked(tmp_path, {"a": torch.tensor(7), "b": torch.tensor(8)})
    assert {name: x.tolist() for name, x in tensors.read(tmp_path).items()} == {"a": 7, "b": 8}


def test_writing_again_leaves_nothing_of_before(tmp_path: Path) -> None:
    tensors.write(tmp_path, {"old": torch.ones(2), "x": torch.ones(3)}, {"old": 1})
    tensors.write(tmp_path, {"x": torch.zeros(2)})
    assert list(tensors.read(tmp_path)) == ["x"] and tensors.read(tmp_path)["x"].tolist() == [0.0, 0.0]
    tensors.write_stacked(tmp_path, {"x": torch.ones(2)})
    tensors.write(tmp_path, {"x": torch.zeros(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["tensors.zarr.zip"]


def _stacked(tmp_path: Path) -> dict[str, torch.Tensor]:
    written = {f"rows:{i}": torch.full((2, 3 + i % 2), float(i)).bfloat16() for i in (4, 0, 1, 2, 3)}
    written["plain"] = torch.full((2, 3), 9.0)
    written["tall"] = torch.full((3, 2), 8.0)
    tensors.write_stacked(tmp_path, written, {"start": 3})
    return written


def test_stacked_tensors_come_back_by_name(tmp_path: Path) -> None:
    written = _stacked(tmp_path)
    assert list(tensors.read(tmp_path)) == sorted(written)
    for back in (tensors.read(tmp_path), tensors.read(tmp_path, list(written))):
        assert all(back[name].dtype == x.dtype and torch.equal(back[name], x) for name, x in written.items())
    assert list(tensors.read(tmp_path, ["rows:3"])) == ["rows:3"]


def test_tensors_of_one_shape_and_type_are_one_array_of_a_chunk_each(tmp_path: Path) -> None:
    _stacked(tmp_path)
    with zipfile.ZipFile(tmp_path / "tensors.zarr.zip") as pack:
        members = json.loads(pack.read("zarr.json"))["attributes"]
        chunk, names = pack.read("stack0/c/2/0/0"), pack.namelist()
    assert members == {
        "start": 3,
        "members": {
            "rows:4": ["stack0", 0],
            "rows:0": ["stack0", 1],
            "rows:2": ["stack0", 2],
            "rows:1": ["stack1", 0],
            "rows:3": ["stack1", 1],
            "plain": ["stack2", 0],
            "tall": ["stack3", 0],
        },
    }
    assert chunk == np.full(6, 0x4000, "<u2").tobytes(), "rows:2 in bf16"
    assert [name for name in names if name.startswith("stack0/c")] == [f"stack0/c/{i}/0/0" for i in range(3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.json", "tensors.zarr.zip"]


def test_scratch_is_one_safetensors_file(tmp_path: Path) -> None:
    x = torch.arange(6.0).reshape(2, 3)
    tensors.write_scratch(tmp_path, {"b": x.T, "c": torch.tensor([1], dtype=torch.int64), "a": torch.ones(1).half()})
    with safe_open(tmp_path / "scratch.safetensors", framework="numpy") as file:
        assert np.array_equal(file.get_tensor("b"), np.array([[0, 3], [1, 4], [2, 5]], "f4"))
    back = tensors.read_scratch(tmp_path)
    assert list(back) == ["a", "b", "c"] and torch.equal(back["b"], x.T) and back["c"].dtype == torch.int64


@pytest.mark.parametrize("write", [tensors.write, tensors.write_stacked])
def test_lazy_tensors_have_the_sizes_of_those_that_they_load(
    write: Callable[[Path, dict[str, torch.Tensor]], None], tmp_path: Path
) -> None:
    stored = {"b": torch.randn(3, 5).bfloat16(), "a": torch.arange(4), "c": torch.ones(3, 5).bfloat16()}
    write(tmp_path, stored)
    found = tensors.lazy(tmp_path)
    assert {n: (t.shape, t.dtype, t.nbytes) for n, t in found.items()} == {
        "a": ((4,), torch.int64, 32),
        "b": ((3, 5), torch.bfloat16, 30),
        "c": ((3, 5), torch.bfloat16, 30),
    }
    assert all(torch.equal(found[name].load(), tensor) for name, tensor in stored.items())


def test_a_mapped_tensor_lies_in_its_file_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    numbers = torch.arange(6.0).reshape(2, 3)
    tensors.write(tmp_path, {"x": numbers.bfloat16(), "none": torch.zeros(0, 3), "one": torch.tensor(7)})
    x = tensors.mapped(tmp_path, "x")
    assert x.dtype == torch.bfloat16 and x.tolist() == [[0, 1, 2], [3, 4, 5]]
    if MAPS.exists():
        assert file_of(x) == ("rw-p", str((tmp_path / "tensors.zarr.zip").resolve())), "p: private, copied on write"
    x[0, 0] = 9
    assert x.tolist()[0] == [9, 1, 2] and tensors.read(tmp_path)["x"].tolist()[0] == [0, 1, 2]
    assert tensors.mapped(tmp_path, "none").shape == (0, 3) and tensors.mapped(tmp_path, "one").item() == 7


def test_a_stacked_tensor_is_mapped_alone(tmp_path: Path) -> None:
    written = _stacked(tmp_path)
    assert all(torch.equal(tensors.mapped(tmp_path, name), x) for name, x in written.items())
    if MAPS.exists():
        path = tmp_path / "tensors.zarr.zip"
        assert file_of(tensors.mapped(tmp_path, "rows:2"))[1] == str(path.resolve())


def test_lazy_tensors_are_written_one_after_the_other(tmp_path: Path) -> None:
    """Two that share one buffer, as the Gram matrices of one input do."""
    room = torch.empty(2)
    lazy = {n: LazyTensor((2,), torch.float32, partial(room.fill_, float(n))) for n in ("3", "5")}
    tensors.write(tmp_path, lazy)
    assert {name: x.tolist() for name, x in tensors.read(tmp_path).items()} == {"3": [3, 3], "5": [5, 5]}


def test_arrays_that_another_zarr_wrote_are_read_by_zarr(tmp_path: Path) -> None:
    """Compressed ones, and ones of several chunks."""
    group = zarr.open_group(tmp_path / "tensors.zarr", mode="w")
    group.create_array("packed", data=np.arange(40.0), chunks=(40,))
    group.create_array("cut", data=np.arange(40.0), chunks=(8,), compressors=None)
    assert all(x.tolist() == list(range(40)) for x in tensors.read(tmp_path).values())
    assert tensors.mapped(tmp_path, "cut").tolist() == list(range(40))


def test_a_stack_is_one_array_of_its_parts(tmp_path: Path) -> None:
    parts = [torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0], [6.0]]).T]
    tensors.write(tmp_path, {"s": tensors.Stack(parts)})
    tensors.write(tmp_path / "wanted", {"s": torch.tensor([[[1.0, 2.0]], [[5.0, 6.0]]])})
    found, wanted = (folder / "tensors.zarr.zip" for folder in (tmp_path, tmp_path / "wanted"))
    assert found.read_bytes() == wanted.read_bytes()
    assert tensors.read(tmp_path)["s"].tolist() == [[[1, 2]], [[5, 6]]]
    with pytest.raises(ValueError, match="s has parts of several shapes"):
        tensors.write(tmp_path, {"s": tensors.Stack([torch.ones(1), torch.ones(2)])})


def test_equal_tensors_make_equal_files_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"a": torch.arange(12.0).reshape(3, 4), "half": torch.arange(6).bfloat16(), "scalar": torch.tensor(2.5)}
    for write in (tensors.write, tensors.write_stacked):
        write(tmp_path / "now", values)
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: 4e9)
            patch.setattr(time, "localtime", lambda *_: time.gmtime(4e9))
            write(tmp_path / "later", values)
        for file in (tmp_path / "now").iterdir():
            assert file.read_bytes() == (tmp_path / "later" / file.name).read_bytes()


@pytest.mark.parametrize("write", [tensors.write, tensors.write_stacked])
def test_groups_in_folders_are_read_as_those_in_packs(
    write: Callable[[Path, dict[str, torch.Tensor], dict[str, int]], None], tmp_path: Path
) -> None:
    """As version 0.1 wrote them."""
    stored = {"b": torch.randn(3, 5).bfloat16(), "a": torch.arange(4), "c": torch.ones(3, 5).bfloat16()}
    write(tmp_path, stored, {"n": 1})
    unpack(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tensors.zarr"]
    for back in (tensors.read(tmp_path), {name: tensors.mapped(tmp_path, name) for name in stored}):
        assert {name: x.tolist() for name, x in back.items()} == {name: x.tolist() for name, x in stored.items()}
    assert arrays.attributes(tmp_path)["n"] == 1


@pytest.mark.parametrize("write", [tensors.write, tensors.write_stacked])
def test_packs_of_many_gigabytes_are_read_too(
    write: Callable[[Path, dict[str, torch.Tensor]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of sizes and places above 2 GB, which here is 100 bytes."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    stored = {f"x{i}": torch.full((3, 20 + i % 2), float(i)) for i in range(5)} | {"small": torch.ones(2)}
    write(tmp_path, stored)
    monkeypatch.undo()
    back = tensors.read(tmp_path)
    assert {name: x.tolist() for name, x in back.items()} == {name: x.tolist() for name, x in stored.items()}
    assert all(torch.equal(tensors.mapped(tmp_path, name), x) for name, x in stored.items())
    with zipfile.ZipFile(tmp_path / "tensors.zarr.zip") as pack:
        assert pack.testzip() is None
    assert all(span.start % 64 == 0 for span in contents(tmp_path / "tensors.zarr.zip").chunks.values())
