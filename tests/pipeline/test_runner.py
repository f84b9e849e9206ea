"""The run's executor: made on first use, and again when its workers are to hold another share of a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adatsq_pipe.pipeline import placement, runner
from adatsq_pipe.pipeline.config import RunConfig, load
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.runner import Executors, _placed, _unusual
from adatsq_pipe.stages.architecture import memory
from adatsq_pipe.stages.architecture.support import CONVOLUTION, RAW, TABLE, VECTORS
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.run_settings import ModelRef, RunSettings
from adatsq_pipe.storage.errors import DamagedUnit
from adatsq_pipe.storage.rundir import RunDir
from tests.support.made_store import make_store


class Made:
    def __init__(self, share: float) -> None:
        self.share, self.closed, self.stopped = share, False, False

    def close(self) -> None:
        self.closed = True

    def stop(self) -> None:
        self.stopped = True


def _config(*sets: str) -> RunConfig:
    return load(preset=None, file=None, sets=sets, model=None, previous=None)


def _executors(config: RunConfig, monkeypatch: pytest.MonkeyPatch, run: Path) -> Executors:
    made = Executors(config, RunDir(run))
    monkeypatch.setattr(Executors, "_make", lambda self: Made(self.share))
    return made


def test_another_share_closes_the_executor_and_makes_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    executors = _executors(_config("cluster.gpus_per_worker=auto"), monkeypatch, tmp_path)
    first: Any = executors.get(1.0)
    assert executors.get(1.0) is first and executors.get() is first and not first.closed
    executors.stop()
    second: Any = executors.get(0.5)
    assert first.closed and (second.share, second.stopped) == (0.5, True)


def test_plots_of_units_that_were_found_damaged_are_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They may show what was damaged. What draws them has ended before the units are done again."""
    store, asked = make_store(tmp_path), list[str]()
    executors = _executors(_config(), monkeypatch, tmp_path)
    monkeypatch.setattr(runner, "_once", lambda *_: True)
    monkeypatch.setattr(runner, "plan", lambda *_: ([], store.context))

    class Plots:
        def of(self, context: Context) -> dict[str, bytes]:
            asked.append("ended")
            return {}

    def conclude(steps: object, context: Context) -> None:
        asked.append("plots" if executors.ahead else "none")
        if executors.ahead:
            raise DamagedUnit("search", "front", "it does not have the digest")

    class Silent:
        def say(self, line: str) -> None: ...

    executors.ahead = Plots()  # type: ignore[assignment]
    screen: Any = Silent()
    runner.execute(_config(), RunDir(tmp_path), [], executors, screen, conclude=conclude)
    assert asked == ["plots", "ended", "none"]


def test_a_share_set_by_hand_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    executors = _executors(_config("cluster.gpus_per_worker=0.25"), monkeypatch, tmp_path)
    assert executors.get().share == 0.25


def test_only_auto_on_ray_is_measured_and_without_a_gpu_the_error_names_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = Context(settings=RunSettings([]), run="", model=ModelRef(path=Path()))
    assert _placed("fisher", context, _config()) is None
    assert _placed("fisher", context, _config("cluster.gpus_per_worker=auto", "cluster.executor=inline")) is None
    monkeypatch.setattr(memory, "gpu_memory", lambda: 0)
    monkeypatch.setattr(placement, "need_of", lambda context, stage: None)
    with pytest.raises(ConfigError, match=r"set cluster\.gpu_memory to the GB"):
        _placed("fisher", context, _config("cluster.gpus_per_worker=auto"))
    found = _placed("fisher", context, _config("cluster.gpus_per_worker=auto", "cluster.gpu_memory=24"))
    assert found is not None and (found.workers, found.memory) == (1, 24 * 10**9)


def test_a_share_that_is_none_is_refused_with_what_may_be_given() -> None:
    for given in ("some", "-1", "true"):
        with pytest.raises(ConfigError, match=r"cluster\.gpus_per_worker: give the share .* or auto \(got"):
            _config(f"cluster.gpus_per_worker={given}")


def test_skipped_modules_are_reported_in_one_line(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    manifest = store.manifest("capture")
    store.write_survey(parameters=1000)
    assert _unusual(store.context) == ""
    manifest.discard("left")
    manifest.open_unit("left")
    reasons = [VECTORS, CONVOLUTION, TABLE, RAW, CONVOLUTION, CONVOLUTION]
    left = [
        {"why": why, "parameters": 10 + i, "count": i, "kind": f"Kind{i}", "pattern": f"blocks.*.p{i}"}
        for i, why in enumerate(reasons)
    ]
    manifest.commit("left", value=left)
    said = _unusual(store.context)
    assert said.startswith("left as they are in the blocks, 6.5 % of the parameters: 1 Kind1 (blocks.*.p1), 2 Kind2")
    assert "4 Kind4 (blocks.*.p4) and 1 more kinds; `inspect` says why" in said and "Kind0" not in said
