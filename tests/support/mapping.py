"""Which file a tensor's numbers lie in, as the kernel sees it."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

MAPS = Path("/proc/self/maps")


def file_of(tensor: Tensor) -> tuple[str, str]:
    """(permissions such as "rw-p", path or "") of the mapping that holds the tensor's first number. Linux only."""
    for line in MAPS.read_text().splitlines():
        match = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+ *(.*)", line)
        assert match is not None
        if int(match[1], 16) <= tensor.data_ptr() < int(match[2], 16):
            return match[3], match[4]
    raise AssertionError("the address belongs to no mapping")
