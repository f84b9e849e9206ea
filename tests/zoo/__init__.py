"""The zoo: a tiny pipeline of random weights for every transformer pipeline that can be made from its classes."""

from __future__ import annotations

from collections.abc import Callable

from tests import tiny
from tests.zoo import images, language, latest, latest_videos, newer, refused, videos
from tests.zoo.parts import Built

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
ALONE = ("cosmos3", "easyanimate", "hunyuan-video1.5", "prx", "prx-pixel", "wan-vace")
"""Those that take one prompt at a time."""
