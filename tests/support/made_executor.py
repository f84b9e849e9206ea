"""A fake Executor for the search: errors come from a made-up table, and units are committed as the worker would."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from adatsq_pipe.stages.allocation.batch_slices import unit_name
from adatsq_pipe.stages.base.context import Context

Errors = Callable[[tuple[int, ...], int], float]
"""The error of a path on the slice at a place."""


class Interrupted(Exception):
    """The executor stopped before it did the next unit."""


class TableExecutor:
    """Answers `path/...` and `rollout/...` keys from two tables; `asked` keeps the keys in the order of dispatch.

    With `stop` it does so many units and raises Interrupted at the next. `samples` are the captions of each slice.
    """

    def __init__(self, paths: Errors, rollouts: Errors, samples: list[int], stop: int | None = None) -> None:
        self.tables, self.samples, self.stop = {"path": paths, "rollout": rollouts}, samples, stop
        self.asked: list[str] = []
        self.micro_batches: Mapping[str, Mapping[str, int]] = {}
        """What some keys were halved to."""

    def stream(self, worker: type[Any], context: Context, keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
        manifest = context.manifest("search")
        for key in keys:
            if self.stop is not None and len(self.asked) == self.stop:
                raise Interrupted
            self.asked.append(key)
            kind, path, place = key.split("/")
            choices = tuple(int(c) for c in path.split("."))
            error = self.tables[kind](choices, int(place))
            unit = unit_name(kind, choices, int(place))
            manifest.open_unit(unit)
            calls = 1 if kind == "path" else len(choices)
            value = {"choices": list(choices), "error": error, "calls": calls, "samples": self.samples[int(place)]}
            seconds = {"model": 20.0, "algebra": 3.0, "total": 1000.0, "calls": 0}
            manifest.commit(unit, value=value, seconds=seconds, micro_batch=self.micro_batches.get(key))
            yield key, error

    def coordinate(self, search: Callable[..., None], context: Context, report: Callable[[int, int], None]) -> None:
        search(self, context, report)
