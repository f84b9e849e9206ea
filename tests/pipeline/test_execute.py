"""A run of made-up stages: what is done, what is withdrawn, what is refused and what is published."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adatsq_pipe.pipeline import config, plan, runner
from adatsq_pipe.pipeline.beside import Spare
from adatsq_pipe.pipeline.config import RunConfig
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.stages.base.context import Context, Report
from adatsq_pipe.stages.base.settings import DataSettings, Settings
from adatsq_pipe.stages.base.stage import Stage
from adatsq_pipe.storage.errors import DamagedUnit, StorageError
from adatsq_pipe.storage.rundir import RunDir

NEEDS = {"first": (), "second": ("first",), "assemble": ("second",), "evaluate": ("assemble",)}


class Screen:
    """Keeps what is said, and the stages that were shown."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.stages: list[str] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[Report]:
        self.stages.append(name)
        yield lambda done, of: None

    def say(self, line: str) -> None:
        self.lines.append(line)


class Offered:
    """An executor that keeps what it was offered, by the order of the stages."""

    def __init__(self) -> None:
        self.offers: list[tuple[object, list[str]]] = []

    def offer(self, worker: object, context: Context, keys: list[str]) -> None:
        self.offers.append((worker, keys))


class Made:
    """Four stages of two units each (assemble has one, `model`)."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.run, self.screen = folder, RunDir(folder / "run"), Screen()
        self.worked: list[str] = []
        self.before: dict[str, Callable[[Context], None]] = {}
        self.executors, self.executor = 0, Offered()
        (folder / "model").mkdir()
        self.run.create()
        stages = {name: self._stage(name) for name in NEEDS}
        monkeypatch.setattr(plan, "all_stages", lambda: stages)
        monkeypatch.setattr(runner.memory, "surveyed", lambda context: None)

    def _stage(self, name: str) -> Stage:
        def work(context: Context, executor: object, report: Report) -> None:
            assert executor is self.executor
            if name in self.before:
                self.before[name](context)
            units = [("assemble", "model")] if name == "assemble" else [(name, "a"), (name, "b")]
            for stage, unit in units:
                manifest = context.manifest(stage)
                if not manifest.done(unit):
                    self.worked.append(f"{stage}/{unit}")
                    (manifest.open_unit(unit) / "bytes").write_text(unit)
                    manifest.commit(unit)

        def reads(tables: Any, model: str) -> Any:
            return {"seed": tables[DataSettings].seed}

        return Stage(
            name=name,
            version=1,
            needs=NEEDS[name],
            reads=reads,
            run=work,
            expected=lambda context: 2,
            settings=Settings,
        )

    def config(self) -> RunConfig:
        return config.load(preset=None, file=None, sets=(), model=str(self.folder / "model"), previous=None)

    def context(self) -> Context:
        return plan.plan(self.config(), self.run)[1]

    def execute(
        self,
        *stages: str,
        publish: bool = True,
        conclude: Callable[[list[plan.Step], Context], object] = lambda steps, context: None,
    ) -> bool:
        def get(share: float | None) -> Offered:
            assert share is None
            self.executors += 1
            return self.executor

        loaded = self.config()
        executors: Any = SimpleNamespace(get=get, config=loaded, memory_line="", device_shown=True, ahead=None)
        steps, context, ran = runner.execute(
            loaded, self.run, list(stages or NEEDS), executors, self.screen, publish=publish, conclude=conclude
        )
        assert [step.stage.name for step in steps] == list(NEEDS) and context == self.context()
        return ran


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    return Made(tmp_path, monkeypatch)


EVERY = ["first/a", "first/b", "second/a", "second/b", "assemble/model", "evaluate/a", "evaluate/b"]


def test_every_missing_stage_is_run_in_order_and_vouches_for_its_units(made: Made) -> None:
    assert made.execute()
    assert made.worked == EVERY and made.screen.stages == list(NEEDS) and made.screen.lines == []
    context = made.context()
    for name in NEEDS:
        manifest = context.manifest(name)
        assert manifest.read("complete").value == {u: manifest.read(u).digest for u in manifest.units()}
    entries = list(made.run.log_entries())
    assert [(e["stage"], e["fingerprint"]) for e in entries] == [(n, context.fingerprints[n]) for n in NEEDS]
    assert all(set(e) == {"stage", "fingerprint", "wall"} for e in entries)
    assert made.run.identities("second")[0]["needs"] == {"first": context.fingerprints["first"]}


def test_a_run_with_nothing_to_do_makes_no_executor(made: Made) -> None:
    made.execute()
    before = made.executors
    assert made.executors == 4
    assert not made.execute()
    assert made.executors == before and made.worked == EVERY and len(list(made.run.log_entries())) == 4


def test_only_the_chosen_stages_run(made: Made) -> None:
    assert made.execute("first")
    assert made.worked == ["first/a", "first/b"]
    assert made.execute("second", "first")
    assert made.worked == EVERY[:4]


def test_a_stage_whose_needs_are_not_done_is_refused_by_name(made: Made) -> None:
    with pytest.raises(
        ConfigError, match=r"stage second needs first, which is not done; add it: --stages first\.\.second"
    ):
        made.execute("second")
    made.execute("first", "second")
    with pytest.raises(ConfigError, match=r"stage evaluate needs assemble, which is not done"):
        made.execute("evaluate")
    assert made.worked == EVERY[:4]


def test_a_damaged_unit_is_withdrawn_and_done_again_alone(made: Made) -> None:
    made.execute()
    made.worked.clear()
    manifest = made.context().manifest("second")
    (manifest.unit_folder("b") / "bytes").write_text("too long")
    assert made.execute()
    assert made.worked == ["second/b"]
    assert made.screen.lines == [
        "unit 'b' of stage second is damaged (a file is missing or has the wrong size): it is done again"
    ]
    assert (manifest.unit_folder("b") / "bytes").read_text() == "b" and manifest.done("complete")


def test_a_unit_found_damaged_while_a_later_stage_reads_it_is_done_again(made: Made) -> None:
    """Its size is right, so that only who reads it notices; its stage runs again though it was not chosen."""
    made.execute("first", "second")
    (made.context().manifest("first").unit_folder("a") / "bytes").write_text("x")
    made.worked.clear()
    made.before["assemble"] = lambda context: void(context.read("first", "a"))
    assert made.execute("assemble")
    assert made.worked == ["first/a", "assemble/model"]
    assert len(made.screen.lines) == 1 and "it is withdrawn and done again" in made.screen.lines[0]
    assert made.screen.stages[-2:] == ["first", "assemble"]


def test_what_verify_found_is_done_again_in_the_folders_of_other_settings_too(made: Made) -> None:
    """Their sizes are right, so that no plan notices."""
    made.execute()
    current = made.context().manifest("second")
    other = made.run.manifest("second", "0" * 64)
    for unit in ("a", "b"):
        (other.open_unit(unit) / "bytes").write_text(unit)
        other.commit(unit)
    for manifest in (current, other):
        (manifest.unit_folder("b") / "bytes").write_text("x")
    assert [entry[:2] for entry in plan.verify(made.run)[1]] == [("second", "b"), ("second", "b")]
    made.worked.clear()
    assert made.execute()
    assert made.worked == ["second/b"] and (current.unit_folder("b") / "bytes").read_text() == "b"
    assert list(other.units()) == ["a"], "it is computed again when its settings return"
    assert len(made.screen.lines) == 2 and all("unit 'b' of stage second is damaged" in x for x in made.screen.lines)
    assert plan.verify(made.run)[1] == []
    assert not made.execute()


def test_a_unit_that_the_report_finds_damaged_is_done_again(made: Made) -> None:
    looks = list[int]()

    def look(steps: list[plan.Step], context: Context) -> None:
        looks.append(1)
        context.read("second", "b")

    made.execute()
    (made.context().manifest("second").unit_folder("b") / "bytes").write_text("x")
    made.worked.clear()
    assert made.execute(conclude=look)
    assert made.worked == ["second/b"] and len(looks) == 2


def void(value: object) -> None:
    """Nothing."""


def test_what_is_found_damaged_again_and_again_ends_the_run(made: Made) -> None:
    tries = list[int]()

    def find(context: Context) -> None:
        tries.append(1)
        raise DamagedUnit("first", "a", "it is not as it was written")

    made.before["second"] = find
    with pytest.raises(StorageError, match=r"units were found damaged 8 times in one run"):
        made.execute()
    assert len(tries) == 8 and made.worked == ["first/a", "first/b", *["first/a"] * 7]


def test_an_error_leaves_the_stage_unfinished_and_its_time_in_the_log(made: Made) -> None:
    def fail(context: Context) -> None:
        raise RuntimeError("stop")

    made.before["second"] = fail
    with pytest.raises(RuntimeError, match="stop"):
        made.execute()
    assert not made.context().manifest("second").done("complete")
    assert [entry["stage"] for entry in made.run.log_entries()] == ["first", "second"]


def test_the_assembled_folder_becomes_the_run_s_model(made: Made) -> None:
    made.execute(publish=False)
    assert not made.run.model.exists()
    made.execute()
    folder = made.context().manifest("assemble").local_folder("model")
    assert made.run.model.resolve() == folder.resolve()


def test_a_model_published_with_its_scores_is_not_replaced_by_one_without(made: Made) -> None:
    made.execute()
    prints = made.context().fingerprints
    scored = made.run.published_folder(prints["assemble"], prints["evaluate"])
    scored.mkdir(parents=True)
    made.run.publish(scored, prints["assemble"], prints["evaluate"])
    made.execute()
    assert made.run.model.resolve() == scored.resolve()
    other = made.run.published_folder(prints["assemble"], "of another evaluation")
    other.mkdir(parents=True)
    made.run.publish(other, prints["assemble"], "of another evaluation")
    made.execute()
    assert made.run.model.resolve() == made.context().manifest("assemble").local_folder("model").resolve()


def test_a_stage_that_does_not_assemble_publishes_nothing(made: Made) -> None:
    made.execute(publish=False)
    made.execute("first", "second", "evaluate")
    assert not made.run.model.exists()


def test_a_stage_beside_the_ordinary_ones_is_run_resumed_and_repaired_as_they_are(made: Made) -> None:
    """It needs `first`: what is damaged there is found by the extra stage, and done again."""
    made.execute()
    made.worked.clear()
    loaded, tries = made.config(), list[str]()

    def work(context: Context, executor: object, report: Report) -> None:
        tries.append(context.fingerprints["extra"])
        if len(tries) == 1:
            raise DamagedUnit("first", "a", "it is torn")
        context.manifest("extra").open_unit("only")
        context.manifest("extra").commit("only")

    extra = replace(made._stage("second"), name="extra", run=work)
    executors: Any = SimpleNamespace(
        get=lambda share: made.executor, config=loaded, said="", device_shown=True, ahead=None
    )

    def execute() -> tuple[list[str], bool]:
        steps, context, ran = runner.execute(
            loaded, made.run, ["extra"], executors, made.screen, publish=False, extra=(extra,)
        )
        assert context.fingerprints.keys() == {*NEEDS, "extra"} and steps[-1].complete
        return [step.stage.name for step in steps], ran

    assert execute() == ([*NEEDS, "extra"], True)
    assert made.worked == ["first/a"] and len(set(tries)) == 1 and len(tries) == 2
    assert execute() == ([*NEEDS, "extra"], False) and len(tries) == 2
    assert [step.stage.name for step in plan.plan(loaded, made.run)[0]] == list(NEEDS), "a plan does not know it"


def test_idle_workers_are_offered_what_there_is_beside_each_stage(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def spare(name: str, steps: list[plan.Step], stages: list[str], context: Context, run: RunDir) -> Spare:
        assert [step.stage.name for step in steps] == list(NEEDS) and stages == ["first", "second"] and run is made.run
        return Spare(f"beside {name}", [name, context.fingerprints[name]])  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "spare_units", spare)
    assert made.execute("first", "second")
    prints = made.context().fingerprints
    assert made.executor.offers == [(f"beside {name}", [name, prints[name]]) for name in ("first", "second")]
