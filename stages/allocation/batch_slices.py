"""The units of the search: each evaluates one path, or one rollout, on one slice of a calibration batch.

The slices follow from the settings alone, never from the number of workers, and their errors are summed in order, so
the bytes do not depend on which worker computes a unit. Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from adatsq_pipe.stages.allocation.digest import digest_of
from adatsq_pipe.stages.allocation.trellis import SearchSettings
from adatsq_pipe.stages.base.settings import DataSettings
from adatsq_pipe.stages.base.units import shards

Choices = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class BatchSlice:
    """Captions `start` up to `stop` of a calibration batch of `of` captions."""

    batch: int
    start: int
    stop: int
    of: int

    @property
    def samples(self) -> int:
        return self.stop - self.start

    @property
    def whole(self) -> bool:
        return self.samples == self.of

    @classmethod
    def for_trellis(cls, data: DataSettings, settings: SearchSettings) -> list[BatchSlice]:
        """The slices of the first `search.batches` calibration batches, on which the search extends paths."""
        return cls._cut(data, range(settings.batches), settings.samples, len(data.prompts))

    @classmethod
    def for_rollouts(cls, data: DataSettings, settings: SearchSettings) -> list[BatchSlice]:
        """The slices on which survivors are re-scored: of the batches after the trellis's, or of its own if no others
        exist."""
        after = range(settings.batches, 2 * settings.batches)
        batches = len(shards(len(data.prompts), data.batch))
        chosen = after if after.start < batches else range(settings.batches)
        return cls._cut(data, chosen, settings.samples, settings.rollout_prompts)

    @classmethod
    def _cut(cls, data: DataSettings, batches: range, size: int, limit: int) -> list[BatchSlice]:
        """At most `limit` captions of `batches`, `size` to a slice (0: a whole batch)."""
        slices, left = list[BatchSlice](), limit
        for batch, captions in list(enumerate(shards(len(data.prompts), data.batch)))[batches.start : batches.stop]:
            of, taken = len(captions), min(len(captions), left)
            parts = shards(taken, size or of)
            slices += [cls(batch=batch, start=part.start, stop=part.stop, of=of) for part in parts]
            left -= taken
        return slices


def unit_name(kind: str, choices: Choices, place: int) -> str:
    """The unit of a path (or rollout) on the slice at `place`."""
    return f"{kind}/{digest_of(choices)}-{place:03d}"


def keys_of(kind: str, paths: Sequence[Choices], slices: Sequence[BatchSlice]) -> dict[str, str]:
    """The units of a level (or of the rollouts) by key, in the order of dispatch.

    One slice after the other; within a slice the paths' parents alternate, so that each of two workers tends to keep
    one parent's state.
    """
    return {
        f"{kind}/{'.'.join(map(str, path))}/{place}": unit_name(kind, path, place)
        for place in range(len(slices))
        for path in _dealt(paths)
    }


def read_key(key: str) -> tuple[str, Choices, int]:
    """The kind, the path and the slice's place that `key` names."""
    kind, path, place = key.split("/")
    return kind, tuple(int(c) for c in path.split(".")), int(place)


def _dealt(paths: Sequence[Choices]) -> list[Choices]:
    families: dict[Choices, list[Choices]] = {}
    for path in paths:
        families.setdefault(path[:-1], []).append(path)
    return [path for row in zip_longest(*families.values()) for path in row if path is not None]


def weighted_mean(errors: Mapping[int, float], slices: Sequence[BatchSlice]) -> float:
    """The mean of the slices' errors, each weighted by its number of captions, summed in order."""
    if len(slices) == 1:
        return errors[0]
    total = 0.0
    for place, part in enumerate(slices):
        total += errors[place] * part.samples
    return total / sum(part.samples for part in slices)
