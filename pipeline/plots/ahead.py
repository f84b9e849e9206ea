"""The plots that need no evaluation, drawn in a thread while the last stages run.

That thread also imports what the report is made with, and compiles its page's templates. What it cannot draw the report
draws, and says what is wrong.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path

from adatsq_pipe.pipeline.plots.figures import pyplot
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.weights.widths import weight_widths

POLICY, WEIGHT_BITS = "policy.png", "weight_bits.png"

MODULES = ("adatsq_pipe.pipeline.report", "adatsq_pipe.pipeline.page.content", "zarr")
"""Modules that the report of a finished run needs, by name: a run with nothing to do, and `status`, import none."""


def drawings(context: Context) -> dict[str, Callable[[Path | BytesIO], object]]:
    """What draws these plots to a file, by their names; those that say something of this recipe."""
    from adatsq_pipe.pipeline.plots import policy, weight_bits  # import numpy, which `status` and `--help` need not

    found: dict[str, Callable[[Path | BytesIO], object]] = {POLICY: lambda file: policy.draw(context, file)}
    if context.settings[Recipe].weight_budget:
        found[WEIGHT_BITS] = lambda file: weight_bits.draw(weight_widths(context), file)
    return found


class PlotsAhead:
    """The plots of one run's search, drawn from now on."""

    def __init__(self, context: Context) -> None:
        self._context, self._drawn = context, dict[str, bytes]()
        self._thread = threading.Thread(target=self._draw, daemon=True)
        self._thread.start()

    def _draw(self) -> None:
        pyplot()
        for module in MODULES:
            importlib.import_module(module)
        from adatsq_pipe.pipeline.page.render import compile_templates  # imports plotly

        compile_templates()
        with suppress(Exception):
            for name, draw in drawings(self._context).items():
                file = BytesIO()
                draw(file)
                self._drawn[name] = file.getvalue()

    def of(self, context: Context) -> Mapping[str, bytes]:
        """The files by name, when they are drawn; none if `context` is of another run or has other settings.

        Matplotlib draws in one thread at a time: nothing else may draw before.
        """
        self._thread.join()
        return self._drawn if context == self._context else {}
