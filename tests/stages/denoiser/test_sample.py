"""Drawing from a folder, and the sheets that pictures are written on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adatsq_pipe.stages.denoiser import sample

GAP = 2


def test_each_prompt_has_the_next_seed_and_pictures_come_as_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Fake:
        def __init__(self, folder: str, **settings: Any) -> None:
            asked.append((folder, settings))

        def record(self, conditions: Any, *, decode: bool, keep: bool) -> Any:
            asked.append((conditions.prompts, conditions.seeds, decode and not keep))
            return SimpleNamespace(pictures=torch.full((2, 4, 4, 3), 0.25, dtype=torch.bfloat16))

    monkeypatch.setattr(sample, "Denoiser", Fake)
    call = {"height": 4}
    drawn = sample.draw(Path("folder"), ("a", "b"), seed=7, call=call, device="cpu", dtype="bfloat16")
    assert asked == [("folder", {"dtype": "bfloat16", "device": "cpu", "call": call}), (("a", "b"), (7, 8), True)]
    assert drawn.dtype == np.float32 and drawn.shape == (2, 4, 4, 3) and float(drawn.max()) == 0.25


def _flat(values: list[float], height: int = 3, width: int = 4) -> Any:
    """Pictures [N, height, width, 3] of one grey each."""
    return np.stack([np.full((height, width, 3), value, np.float32) for value in values])


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (4, 4), (5, 3), (9, 3), (10, 4)])
def test_up_to_four_pictures_stand_in_a_row_and_more_in_a_square(count: int, columns: int, tmp_path: Path) -> None:
    """A gap of two white pixels lies between them; picture i is grey 20 i + 10; every pixel is 3 x 3."""
    greys = [20 * i + 10 for i in range(count)]
    sample.save(_flat([grey / 255 for grey in greys]), tmp_path / "sheet.png", scale=3)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    rows = -(-count // columns)
    right = np.full((rows * (3 + GAP) - GAP, columns * (4 + GAP) - GAP, 3), 255)
    for i, grey in enumerate(greys):
        top, left = i // columns * (3 + GAP), i % columns * (4 + GAP)
        right[top : top + 3, left : left + 4] = grey
    assert np.array_equal(sheet, right.repeat(3, 0).repeat(3, 1))


def test_values_are_rounded_and_cut_to_bytes(tmp_path: Path) -> None:
    sample.save(_flat([-0.5, 0.4999, 1.7, 99.6 / 255]), tmp_path / "sheet.png", scale=1)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert [int(sheet[0, i * 6, 0]) for i in range(4)] == [0, 127, 255, 100]


def test_a_clip_is_an_animation_in_a_gif_and_rows_elsewhere(tmp_path: Path) -> None:
    clip = np.stack([_flat([0.0, 0.2]), _flat([0.4, 0.6]), _flat([0.8, 1.0])]).swapaxes(0, 1)
    assert clip.shape == (2, 3, 3, 4, 3)
    sample.save(clip, tmp_path / "clip.gif", scale=2)
    with Image.open(tmp_path / "clip.gif") as animation:
        assert animation.n_frames == 3 and animation.info["duration"] == 120 and animation.info["loop"] == 0
        greys = []
        for frame in range(3):
            animation.seek(frame)
            pixels = np.asarray(animation.convert("RGB"))
            greys.append((int(pixels[0, 0, 0]), int(pixels[0, -1, 0])))
    right = [(0, 51), (102, 153), (204, 255)]
    assert np.abs(np.array(greys) - np.array(right)).max() <= 2
    sample.save(clip, tmp_path / "clip.png", scale=2)
    rows = np.asarray(Image.open(tmp_path / "clip.png"))
    assert rows.shape == (3 * 6, 2 * (4 + GAP + 4), 3)
    assert [(int(rows[6 * i, 0, 0]), int(rows[6 * i, -1, 0])) for i in range(3)] == right


def test_an_unknown_format_is_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown file extension"):
        sample.save(_flat([0.5]), tmp_path / "sheet.nothing", scale=1)
