"""The zoo: a tiny pipeline of random weights for every transformer pipeline that can be made from its classes."""

from __future__ import annotations

from collections.abc import Callable

from tests import tiny
from tests.zoo import images, language, latest, latest_videos, newer, refused, videos, with_clips, with_pictures
from tests.zoo.parts import Built
from tests.zoo.with_pictures import Given

BUILDERS: dict[str, Callable[[], Built]] = {
    **tiny.BUILDERS,
    **images.BUILDERS,
    **language.BUILDERS,
    **videos.BUILDERS,
    **newer.BUILDERS,
    **latest.BUILDERS,
    **latest_videos.BUILDERS,
    **refused.BUILDERS,
}
GIVEN: dict[str, Callable[[], Given]] = {**with_pictures.GIVEN, **with_clips.GIVEN}
"""Those that are given pictures with their prompts: of each argument of the call, how many."""
ALONE = ("cosmos3", "easyanimate", "hunyuan-video1.5", "prx", "prx-pixel", "wan-vace")
"""Those that take one prompt at a time."""
