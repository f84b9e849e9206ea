"""Groups are read without torch and opened once; file prefixes name the files of a tensor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from adatsq_pipe.storage import arrays, tensors
from tests.support.folder_form import unpack


def test_an_array_is_read_as_it_is_stored(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "tensors.zarr", mode="w", attributes={"n": {"m": [1]}})
    group.create_array("x", data=np.array([[1.5, 2.0]], "f4"))
    assert arrays.read(tmp_path, "x").tolist() == [[1.5, 2.0]] and arrays.read(tmp_path, "x").dtype == np.float32
    assert arrays.attributes(tmp_path) == {"n": {"m": [1]}}


def test_bf16_is_read_as_its_bits(tmp_path: Path) -> None:
    tensors.write(tmp_path, {"x": torch.tensor([1.0, -2.0]).bfloat16()})
    assert arrays.read(tmp_path, "x").dtype == np.uint16 and arrays.read(tmp_path, "x").tolist() == [0x3F80, 0xC000]


def test_a_group_is_opened_once_until_it_is_another(tmp_path: Path) -> None:
    tensors.write(tmp_path, {"x": torch.ones(2)}, {"n": 1})
    first = arrays.open_group(tmp_path)
    assert arrays.open_group(tmp_path) is first
    tensors.write(tmp_path, {"x": torch.zeros(3)}, {"n": 2})
    assert arrays.open_group(tmp_path) is not first
    assert arrays.attributes(tmp_path) == {"n": 2} and arrays.read(tmp_path, "x").tolist() == [0.0, 0.0, 0.0]


def test_the_files_of_a_plain_tensor_lie_in_its_array(tmp_path: Path) -> None:
    tensors.write(tmp_path, {"a": torch.ones(2), "a:b": torch.ones(2)})
    unpack(tmp_path)
    assert arrays.file_prefixes(tmp_path, ["a"]) == ("tensors.zarr/a/",)
    assert arrays.file_prefixes(tmp_path, ["a:b", "a"]) == ("tensors.zarr/a:b/", "tensors.zarr/a/")
    assert arrays.file_prefixes(tmp_path, []) == ()


def test_the_files_of_a_stacked_tensor_are_its_chunk_and_the_description_of_its_array(tmp_path: Path) -> None:
    written = {"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(2), "d": torch.ones(2)}
    tensors.write_stacked(tmp_path, written)
    unpack(tmp_path)
    assert arrays.file_prefixes(tmp_path, ["d", "b", "a"]) == (
        "tensors.zarr/stack0/zarr.json",
        "tensors.zarr/stack1/zarr.json",
        "tensors.zarr/stack0/c/2/",
        "tensors.zarr/stack1/c/0/",
        "tensors.zarr/stack0/c/0/",
    )


@pytest.mark.run
def test_arrays_need_no_torch() -> None:
    command = (
        "import sys, adatsq_pipe.storage.arrays, adatsq_pipe.storage.rundir\n"
        "print('torch' in sys.modules, 'zarr' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
