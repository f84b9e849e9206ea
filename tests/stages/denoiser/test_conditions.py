"""Prompts are cut into batches with their seeds; what comes with them becomes arguments of one call, or is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.denoiser.conditions import (
    arguments_of,
    calibration_shards,
    collated,
    conditions_of,
    picture_mode,
)
from tests.support.made_store import make_store

RED, BLUE = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")


def test_pictures_become_lists_and_the_rest_is_shared() -> None:
    assert collated([]) == {}
    assert collated([{"image": RED, "strength": 0.5}]) == {"image": RED, "strength": 0.5}
    both = collated([{"image": RED, "strength": 0.5}, {"image": BLUE, "strength": 0.5}])
    assert both == {"image": [RED, BLUE], "strength": 0.5}
    assert collated([{"images": [RED, BLUE]}, {"images": [BLUE]}]) == {"images": [[RED, BLUE], [BLUE]]}


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ([{"strength": 0.5}, {"strength": 0.6}], "strength differs inside a batch"),
        ([{"strength": 0.5}, {}], "some come with strength and some without"),
    ],
)
def test_what_one_call_cannot_have_is_refused(batch: list[dict[str, object]], said: str) -> None:
    with pytest.raises(StageError, match=f"{said}.*batch to 1"):
        collated(batch)


def test_a_file_of_several_frames_is_their_list(tmp_path: Path) -> None:
    RED.save(tmp_path / "clip.gif", save_all=True, append_images=[BLUE], duration=100)
    RED.save(tmp_path / "still.png")
    given = {"images": {"video": "clip.gif", "image": "still.png", "images": ["still.png"]}, "call": {"fps": 8}}
    found = arguments_of(lambda name: tmp_path / name, given, "RGB")
    assert [frame.getpixel((0, 0)) for frame in found["video"]] == [(255, 0, 0), (0, 0, 255)]
    assert found["image"].size == (4, 4) and len(found["images"]) == 1 and found["fps"] == 8


@pytest.mark.parametrize(
    ("said", "mode"), [({"in_channels": 3}, "RGB"), ({"input_channels": 4}, "RGBA"), (None, "RGB")]
)
def test_transparency_is_kept_for_autoencoders_that_take_it(said: object, mode: str, tmp_path: Path) -> None:
    if said:
        (tmp_path / "vae").mkdir()
        (tmp_path / "vae" / "config.json").write_text(json.dumps(said))
    assert picture_mode(tmp_path) == mode
    Image.new("RGBA", (2, 2), (255, 0, 0, 128)).save(tmp_path / "a.png")
    found = arguments_of(lambda name: tmp_path / name, {"images": {"image": "a.png"}}, mode)["image"]
    assert found.mode == mode


def test_captions_are_cut_into_batches_in_their_order_each_with_a_seed_of_its_own(tmp_path: Path) -> None:
    store = make_store(tmp_path, data={"prompts": ["a", "b", "c", "d", "e"], "batch": 2, "seed": 3})
    found = calibration_shards(store.context)
    assert [batch.prompts for batch in found] == [("a", "b"), ("c", "d"), ("e",)]
    first = 3 * 1_000_003
    assert [batch.seeds for batch in found] == [(first, first + 1), (first + 2, first + 3), (first + 4,)]
    assert all(batch.inputs == () for batch in found)


def test_what_captions_come_with_goes_with_them_and_a_seed_of_their_own_goes_first(tmp_path: Path) -> None:
    given = [{"call": {"height": 8}, "seed": 70}, {"call": {"height": 9}}, {"seed": 90}]
    store = make_store(tmp_path, data={"prompts": ["a", "b", "c"], "inputs": given, "batch": 2, "seed": 1})
    found = calibration_shards(store.context)
    assert [batch.seeds for batch in found] == [(70, 1_000_003 + 1), (90,)]
    assert [batch.inputs for batch in found] == [({"height": 8}, {"height": 9}), ({},)]


def test_a_further_draw_moves_a_manifests_seed_and_is_a_seed_for_the_others(tmp_path: Path) -> None:
    context = make_store(tmp_path).context
    draws = [
        conditions_of(context, ("a", "b"), ({"seed": 7}, {}), seed, draw) for seed, draw in ((0, 0), (1, 1), (2, 2))
    ]
    seeds = [[each.seeds[0] for each in captions] for captions in draws]
    assert seeds == [[7, 1], [7 + 1_000_003, 1_000_003 + 1], [7 + 2 * 1_000_003, 2 * 1_000_003 + 1]]
