"""How the search's work is cut into units: a path (or a rollout) on a portion of the calibration captions each.

Which portions there are follows from the settings alone, never from the number of workers, and what they give is put
together in their order: so the bytes are the same whoever computes them. Importing this brings in no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from adatsq_pipe.stages.allocation.trellis import SearchSettings
from adatsq_pipe.stages.base.settings import DataSettings
from adatsq_pipe.stages.base.units import shards

Choices = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Portion:
    """Captions `start` up to `stop` of a calibration batch that has `of`."""

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


def of_trellis(data: DataSettings, settings: SearchSettings) -> list[Portion]:
    """The portions of the first `search.batches` calibration batches, on which paths are extended."""
    return _portions(data, range(settings.batches), settings.samples, len(data.prompts))


def of_rollouts(data: DataSettings, settings: SearchSettings) -> list[Portion]:
    """The portions on which survivors are re-scored: of the batches after the trellis's, or of those if none is left"""
    after = range(settings.batches, 2 * settings.batches)
    there = len(shards(len(data.prompts), data.batch))
    chosen = after if after.start < there else range(settings.batches)
    return _portions(data, chosen, settings.samples, settings.rollout_prompts)


def _portions(data: DataSettings, batches: range, size: int, limit: int) -> list[Portion]:
    """Captions of the batches up to `limit` of them in all, `size` (0: a whole batch) to a portion."""
    found, left = list[Portion](), limit
    for batch, captions in list(enumerate(shards(len(data.prompts), data.batch)))[batches.start : batches.stop]:
        of, taken = len(captions), min(len(captions), left)
        parts = shards(taken, size or of)
        found += [Portion(batch=batch, start=part.start, stop=part.stop, of=of) for part in parts]
        left -= taken
    return found


def digest_of(choices: Choices) -> str:
    return hashlib.sha256(repr(tuple(choices)).encode()).hexdigest()[:24]


def unit_name(kind: str, choices: Choices, place: int) -> str:
    """The unit of a path (or rollout) on the portion at `place`."""
    return f"{kind}/{digest_of(choices)}-{place:03d}"


def keys_of(kind: str, paths: Sequence[Choices], portions: Sequence[Portion]) -> dict[str, str]:
    """Everything that a level (or the rollouts) has to be computed, as key -> unit, in the order of dispatch.

    Portion by portion, and in turn of the paths' parents: of two workers each tends to stay with one parent's state.
    """
    return {
        f"{kind}/{'.'.join(map(str, path))}/{place}": unit_name(kind, path, place)
        for place in range(len(portions))
        for path in _dealt(paths)
    }


def read_key(key: str) -> tuple[str, Choices, int]:
    """A key's kind, path and portion."""
    kind, path, place = key.split("/")
    return kind, tuple(int(c) for c in path.split(".")), int(place)


def _dealt(paths: Sequence[Choices]) -> list[Choices]:
    families: dict[Choices, list[Choices]] = {}
    for path in paths:
        families.setdefault(path[:-1], []).append(path)
    return [path for row in zip_longest(*families.values()) for path in row if path is not None]


def together(errors: Mapping[int, float], portions: Sequence[Portion]) -> float:
    """The error over all portions: the mean of theirs, each weighted by its captions, summed in their order."""
    if len(portions) == 1:
        return errors[0]
    total = 0.0
    for place, portion in enumerate(portions):
        total += errors[place] * portion.samples
    return total / sum(portion.samples for portion in portions)
