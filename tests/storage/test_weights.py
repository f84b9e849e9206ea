"""Shards whose contents follow from sizes counted by hand, and how many tensors are in memory meanwhile."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adatsq_pipe.storage import weights
from adatsq_pipe.storage.errors import StorageError
from adatsq_pipe.storage.weights import DTYPES, LazyTensor, lazy_tensors, write_safetensors, write_weights

BYTES = {"d": 400, "a": 400, "c": 300, "b": 600, "e": 1200, "f": 100}
"""Sizes of the tensors: at most 1000 to a shard, `e` alone has more."""


def _made(name: str) -> torch.Tensor:
    return torch.full((BYTES[name] // 2,), ord(name)).bfloat16()


def test_shards_are_filled_by_name_and_listed_in_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SHARD_BYTES", 1000)
    write_weights(tmp_path, {name: _made(name) for name in BYTES})
    index = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())
    files = sorted(tmp_path.glob("*.safetensors"))
    count = len(files)
    assert [f.name for f in files] == [
        f"diffusion_pytorch_model-0000{i + 1}-of-0000{count}.safetensors" for i in range(count)
    ]
    held = {name: file.name for file in files for name in load_file(file)}
    assert index == {"metadata": {"total_size": 3000}, "weight_map": held} and set(held) == set(BYTES)
    for file in files:
        stored = load_file(file)
        assert all(torch.equal(tensor, _made(name)) for name, tensor in stored.items())
        assert set(stored) == {"e"} or sum(BYTES[name] for name in stored) <= 1000
    assert {"a", "b"} == set(load_file(files[0])), "600 + 400 fit, 300 more do not"


def test_of_what_fits_one_file_the_bytes_are_those_of_safetensors(tmp_path: Path) -> None:
    tensors = {name: _made(name) for name in BYTES}
    write_weights(tmp_path, {n: LazyTensor(tuple(t.shape), t.dtype, t.clone) for n, t in tensors.items()})
    save_file(tensors, tmp_path / "wanted", metadata={"format": "pt"})
    assert [path.name for path in tmp_path.iterdir() if path.name != "wanted"] == [
        "diffusion_pytorch_model.safetensors"
    ]
    assert (tmp_path / "diffusion_pytorch_model.safetensors").read_bytes() == (tmp_path / "wanted").read_bytes()


def test_a_file_of_every_dtype_has_the_bytes_of_safetensors(tmp_path: Path) -> None:
    """Also names that JSON escapes, an empty tensor, a scalar, and one that is not contiguous."""
    eight = torch.arange(56, 64, dtype=torch.uint8)
    dtypes = [getattr(torch, line.split()[0]) for line in DTYPES]
    tensors = {f'{i} "é\n': eight.clone().view(dtype) for i, dtype in enumerate(dtypes) if dtype != torch.bool}
    tensors |= {"bool": eight > 58, "none": torch.zeros(0, 3), "scalar": torch.tensor(1.5), "z": torch.rand(3, 4)}
    assert len(tensors) == 22
    save_file(tensors, tmp_path / "wanted", metadata={"format": "pt"})
    write_safetensors(tmp_path / "found", {**tensors, "z": tensors["z"].T.contiguous().T})
    assert (tmp_path / "found").read_bytes() == (tmp_path / "wanted").read_bytes()


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SHARD_BYTES", 1000)
    alive, most = 0, 0

    def load() -> torch.Tensor:
        nonlocal alive, most
        tensor = torch.zeros(400, dtype=torch.uint8)
        alive += 1
        most = max(most, alive)
        weakref.finalize(tensor, freed)
        return tensor

    def freed() -> None:
        nonlocal alive
        alive -= 1

    write_weights(tmp_path, {f"t{i}": LazyTensor((400,), torch.uint8, load) for i in range(9)})
    assert (most, alive) == (1, 0) and len(list(tmp_path.glob("*.safetensors"))) == 5


def test_what_a_file_cannot_hold_is_refused_before_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"c has the dtype torch\.complex128"):
        write_safetensors(tmp_path / "file", {"a": torch.zeros(2), "c": torch.zeros(2, dtype=torch.complex128)})
    assert not list(tmp_path.iterdir())
    changed = LazyTensor((2,), torch.float32, lambda: torch.zeros(3))
    with pytest.raises(StorageError, match=r"torch\.float32 \[2\] is torch\.float32 \[3\]"):
        write_safetensors(tmp_path / "file", {"a": changed})


@pytest.mark.parametrize("ending", ["safetensors", "bin", "old.bin"])
def test_a_tensor_is_read_from_its_file_when_it_is_loaded(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{ending}"
    stored = {"w": torch.arange(6.0).view(2, 3).bfloat16(), "n": torch.tensor([3, 4])}
    if ending == "safetensors":
        save_file(stored, path)
    else:
        torch.save({**stored, "step": 7}, path, _use_new_zipfile_serialization=ending == "bin")
    found = lazy_tensors(path)
    assert {name: (t.shape, t.dtype, t.nbytes) for name, t in found.items()} == {
        "w": ((2, 3), torch.bfloat16, 12),
        "n": ((2,), torch.int64, 16),
    }
    assert all(torch.equal(found[name].load(), tensor) for name, tensor in stored.items())
    if ending != "old.bin":
        path.write_bytes(path.read_bytes()[:9])
        with pytest.raises(StorageError, match=rf"weights\.{ending} does not load"):
            found["w"].load()
