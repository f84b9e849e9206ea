"""The run: configuration, order, resume decisions, command line, reports.

`quantize` is the Python entry point. Importing this package loads nothing else; the name loads its module on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adatsq_pipe.pipeline.entry import quantize

__all__ = ["quantize"]


def __getattr__(name: str) -> object:
    if name == "quantize":
        from adatsq_pipe.pipeline.entry import quantize  # on first use, as the docstring says

        return quantize
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
