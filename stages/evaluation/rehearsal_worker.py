"""The worker that rehearses."""

from __future__ import annotations

from typing import ClassVar

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.errors import NotTaken, StageError
from adatsq_pipe.stages.base.micro_batch import OutOfMemory, OutOfMemoryBackoff
from adatsq_pipe.stages.denoiser.conditions import Conditions, calibration_shards
from adatsq_pipe.stages.denoiser.loading import denoiser_of
from adatsq_pipe.stages.denoiser.noise_levels import NoiseLevels, check_alike, form_of
from adatsq_pipe.stages.evaluation.sampling import draws

FORMS = 8
"""At most so many kinds of calls are tried of a table. Capture compares all its runs once more."""


class Rehearsal(OutOfMemoryBackoff):
    """Rehearses the calls of one table's prompts, `data` or `evaluate`. It commits nothing."""

    stage: ClassVar[str] = "rehearsal"

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        self.denoiser = denoiser_of(context, self.micro)

    def __call__(self, key: str) -> None:
        """Raises NotTaken, with what the pipeline says. The key is "rehearsal/" and the table."""
        table = key.partition("/")[2]
        try:
            batches = calibration_shards(self.context) if table == "data" else draws(self.context)
            with self.context.at_work(self.stage, table):
                self._rehearse(table, batches)
        except (NotTaken, OutOfMemory):
            raise
        except StageError as error:
            raise NotTaken(f"{error} (nothing was started)") from error

    def _rehearse(self, table: str, batches: list[Conditions]) -> None:
        kinds: dict[tuple[object, ...], Conditions] = {}
        for conditions in batches:
            kinds.setdefault(form_of(conditions), conditions)
        first: NoiseLevels | None = None
        for conditions in list(kinds.values())[:FORMS]:
            levels = NoiseLevels.of(self.denoiser.rehearse(conditions))
            first = first or levels
            check_alike(table, conditions, levels, batches[0], first)
