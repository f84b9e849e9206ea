"""What comes with the prompts of a batch becomes the arguments of one call, or is refused with what to do."""

from __future__ import annotations

import pytest
from PIL import Image

from adatsq_pipe.stages.base import StageError
from adatsq_pipe.stages.given import collated

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
