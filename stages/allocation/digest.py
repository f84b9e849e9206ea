"""The digest that names a path or a policy."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def digest_of(numbers: Sequence[int]) -> str:
    """The first 24 hexadecimal digits of the numbers' SHA-256."""
    return hashlib.sha256(repr(tuple(numbers)).encode()).hexdigest()[:24]
