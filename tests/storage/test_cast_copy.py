"""A copy of a pipeline folder with cast weights: what it holds, when there is none, what a killed process leaves."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adatsq_pipe.storage import cast_copy as module
from adatsq_pipe.storage.cast_copy import cast_bytes, cast_copy, home_of
from adatsq_pipe.storage.rundir import RunDir

KEPT = {"transformer": ("norm",), "vae": ()}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sharded denoiser in float32, an autoencoder in bfloat16, and a quantized one that is not to be cast."""
    monkeypatch.setattr(module, "SMALLEST", 0)
    folder = tmp_path / "model"
    index = {name: ["diffusers", "Some"] for name in ("transformer", "vae", "other")}
    for name in index:
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Some", **index}))
    stem = "diffusion_pytorch_model"
    random = torch.Generator().manual_seed(0)
    first = {"odd": torch.randn(3, generator=random), "a": torch.randn(32, 5, generator=random), "ids": torch.arange(4)}
    second = {"norm.w": torch.randn(16, generator=random), "b": torch.randn(64, generator=random)}
    save_file(first, folder / f"transformer/{stem}-00001-of-00002.safetensors", {"format": "pt"})
    save_file(second, folder / f"transformer/{stem}-00002-of-00002.safetensors", {"format": "pt"})
    names = dict.fromkeys(first, f"{stem}-00001-of-00002.safetensors")
    names |= dict.fromkeys(second, f"{stem}-00002-of-00002.safetensors")
    written = {"metadata": {"total_size": 1}, "weight_map": names}
    (folder / f"transformer/{stem}.safetensors.index.json").write_text(json.dumps(written))
    save_file({"v": torch.ones(8).bfloat16()}, folder / f"vae/{stem}.safetensors", {"format": "pt"})
    save_file({"o": torch.ones(8)}, folder / f"other/{stem}.safetensors", {"format": "pt"})
    return folder


def test_shards_keep_their_names_and_hold_cast_numbers(source: Path, tmp_path: Path) -> None:
    copy = cast_copy(source, tmp_path / "home", dtype="bfloat16", kept=KEPT)
    assert copy is not None
    shards = sorted((copy / "transformer").glob("*.safetensors"))
    assert [p.name for p in shards] == [p.name for p in sorted((source / "transformer").glob("*.safetensors"))]
    for shard in shards:
        stored = load_file(source / "transformer" / shard.name)
        for name, tensor in load_file(shard).items():
            same = name in ("ids", "norm.w")
            assert tensor.dtype == (stored[name].dtype if same else torch.bfloat16)
            assert torch.equal(tensor, stored[name] if same else stored[name].to(torch.bfloat16))
    assert (copy / "vae/diffusion_pytorch_model.safetensors").resolve() == (
        source / "vae/diffusion_pytorch_model.safetensors"
    ), "what is stored so already is a link"
    assert (copy / "other/diffusion_pytorch_model.safetensors").is_symlink(), "what is not to be cast too"
    assert (copy / "model_index.json").read_bytes() == (source / "model_index.json").read_bytes()


def test_other_weights_of_the_same_size_get_a_copy_of_their_own(source: Path, tmp_path: Path) -> None:
    def cast() -> torch.Tensor:
        copy = cast_copy(source, tmp_path / "home", dtype="bfloat16", kept=KEPT)
        assert copy is not None
        return load_file(copy / "transformer" / path.name)["b"]

    path = next((source / "transformer").glob("*-00002-of-*.safetensors"))
    before, when = cast(), path.stat().st_mtime_ns
    save_file({"norm.w": torch.zeros(16), "b": torch.full((64,), 2.0)}, path, {"format": "pt"})
    os.utime(path, ns=(when + 10**9, when + 10**9))
    assert not torch.equal(before, cast()) and torch.equal(cast(), torch.full((64,), 2.0).bfloat16())


def test_tensors_of_whole_lines_begin_at_one(source: Path, tmp_path: Path) -> None:
    copy = cast_copy(source, tmp_path / "home", dtype="bfloat16", kept=KEPT)
    assert copy is not None
    for path in (copy / "transformer").glob("*.safetensors"):
        data = path.read_bytes()
        header = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8 : 8 + header]).items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                assert (end - start) % 64 or (8 + header + start) % 64 == 0, name
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}, "transformers refuses files without it"


def test_a_copy_is_found_again_until_the_source_changes(source: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = cast_copy(source, home, dtype="bfloat16", kept=KEPT)
    assert first is not None
    stamp = (first / "model_index.json").stat().st_mtime_ns
    assert cast_copy(source, home, dtype="bfloat16", kept=KEPT) == first
    assert (first / "model_index.json").stat().st_mtime_ns == stamp
    others = {
        cast_copy(source, home, dtype="float16", kept=KEPT),
        cast_copy(source, home, dtype="bfloat16", kept={"transformer": ()}),
    }
    save_file({"v": torch.zeros(8)}, source / "vae/diffusion_pytorch_model.safetensors", {"format": "pt"})
    others.add(cast_copy(source, home, dtype="bfloat16", kept=KEPT))
    assert len(others - {first, None}) == 3


def _no_room(patch: pytest.MonkeyPatch, source: Path) -> None:
    usage = shutil.disk_usage(source)
    patch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=100))


def _full(patch: pytest.MonkeyPatch, source: Path) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    patch.setattr(module, "write_safetensors", refused)


def _damaged(patch: pytest.MonkeyPatch, source: Path) -> None:
    (source / "transformer/diffusion_pytorch_model-00001-of-00002.safetensors").write_bytes(b"x")


def _small(patch: pytest.MonkeyPatch, source: Path) -> None:
    patch.setattr(module, "SMALLEST", 10_000)


def _torch_format(patch: pytest.MonkeyPatch, source: Path) -> None:
    for path in source.glob("*/*.safetensors*"):
        path.unlink()
    torch.save({"a": torch.ones(9)}, source / "transformer/diffusion_pytorch_model.bin")
    patch.setattr(module, "SMALLEST", 1)


@pytest.mark.parametrize("case", [_no_room, _full, _damaged, _small, _torch_format])
def test_where_there_is_no_copy_nothing_is_left_of_one(
    case: Callable[[pytest.MonkeyPatch, Path], None], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case(monkeypatch, source)
    assert cast_copy(source, tmp_path / "home", dtype="bfloat16", kept=KEPT) is None
    home = tmp_path / "home"
    assert not home.exists() or [path.name for path in home.iterdir()] in ([], [".lock"])


def test_what_a_killed_process_left_is_written_again(source: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    copy = cast_copy(source, home, dtype="bfloat16", kept=KEPT)
    assert copy is not None
    half = copy.with_name(copy.name + ".unfinished")
    copy.rename(half)
    (half / "transformer/config.json").unlink()
    assert cast_copy(source, home, dtype="bfloat16", kept=KEPT) == copy
    assert (copy / "transformer/config.json").is_file() and not half.exists()


def test_of_many_at_once_one_writes(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = list[Path]()
    real = module._write

    def counted(origin: Path, folder: Path, *rest: object) -> None:
        written.append(folder)
        real(origin, folder, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_write", counted)
    with ThreadPoolExecutor(4) as pool:
        home = tmp_path / "home"
        found = set(pool.map(lambda _: cast_copy(source, home, dtype="bfloat16", kept=KEPT), range(8)))
    assert len(found) == len(written) == 1


def test_a_run_directory_counts_its_copies_and_removes_them_when_a_run_begins_and_ends(
    source: Path, tmp_path: Path
) -> None:
    run = RunDir.at(str(tmp_path / "run"))
    run.create()
    assert cast_bytes(run.path) == 0
    copy = cast_copy(source, home_of(run.path), dtype="bfloat16", kept=KEPT)
    assert copy is not None
    weights = sum(path.stat().st_size for path in (copy / "transformer").glob("*.safetensors"))
    assert weights <= cast_bytes(run.path) < weights + 2000
    with run.lock():
        assert not (run.path / "cast").exists()
        assert cast_copy(source, home_of(run.path), dtype="bfloat16", kept=KEPT) == copy
    assert not (run.path / "cast").exists()
