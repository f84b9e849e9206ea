"""What of a report could not be made as it is meant, and why: nothing of it costs a run its end."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from adatsq_pipe.storage.errors import DamagedUnit

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk."""


class Notes(dict[str, str]):
    """By the name of a part of the report: why it is missing, or what it shows in another way."""

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Inside, an error is noted for `part`, in one line. Damaged units, to be done again, and full disks raise."""
        try:
            yield
        except DamagedUnit:
            raise
        except Exception as error:  # whatever a plotting library raises for what people wrote
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            self[part] = f"{type(error).__name__}: {' '.join(str(error).split())}"
