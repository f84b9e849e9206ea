"""`pick` on run directories written by hand: what it takes, keeps and says, and what it refuses. Nothing runs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from adatsq_pipe.pipeline import config as configuration
from adatsq_pipe.pipeline import devices, plan
from adatsq_pipe.pipeline.commands import pick
from adatsq_pipe.pipeline.commands.cli import main
from adatsq_pipe.pipeline.config import RunConfig
from adatsq_pipe.pipeline.request import read_request, write_request
from adatsq_pipe.stages.allocation.points import AssembleSettings
from adatsq_pipe.storage import tables
from adatsq_pipe.storage.rundir import RunDir

MEASURED = {4: 0.003}


@dataclass
class Run:
    """A run directory of the built-in flux-schnell, with the configurations that `pick` would run."""

    place: RunDir
    started: list[tuple[RunConfig, list[str]]] = field(default_factory=list)

    def pick(self, *arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["pick", str(self.place.path), *arguments], prog_name="adatsq-pipe")
        return done.exit_code, done.output

    @property
    def bits(self) -> float:
        """assemble.mean_bits of the last configuration that was started."""
        return self.started[-1][0].settings[AssembleSettings].mean_bits


def _front(run: Run) -> None:
    """Search's finished `front`: ten numbers, of mean 3 to 5 by tenths, whose error halves with every half a bit."""
    config = configuration.load(preset=None, file=None, sets=(), model=None, previous=read_request(run.place.path))
    step = next(s for s in plan.plan(config, run.place)[0] if s.stage.name == "search")
    manifest, rows = run.place.manifest("search", step.fingerprint), list[dict[str, object]]()
    for n in range(21):
        mean = 3 + n / 10
        bits = [3] * max(0, 10 - n) + [4] * min(n, 20 - n) + [5] * max(0, n - 10)
        assert sum(bits) / 10 == pytest.approx(mean)
        row = {"mean_bits": mean, "mac_weighted_bits": mean + 0.1, "predicted_error": 0.008 * 4.0 ** (3 - mean)}
        rows.append({**row, "rollout_error": MEASURED.get(n / 10 + 3), "bits": bits})
    tables.write(manifest.open_unit("front") / "front.parquet", rows)
    own = {name: rows[10][name] for name in ("mean_bits", "mac_weighted_bits", "predicted_error", "rollout_error")}
    manifest.commit("front", value={"policy": [[4] * 5 + [16]] * 2, **own, "front": 21, "weights_error": 0.0005})
    manifest.open_unit("complete")
    manifest.commit("complete", value=["front"])


def _run(folder: Path, monkeypatch: pytest.MonkeyPatch, *sets: str) -> Run:
    run = Run(RunDir(folder / "run"))
    run.place.create()
    wanted = ("model.path=scenes/flux-schnell", *sets)
    write_request(run.place, configuration.load(preset=None, file=None, sets=wanted, model=None, previous=None))

    def start(config: RunConfig, place: RunDir, chosen: Sequence[str], **options: Any) -> None:
        if options["as_json"]:
            print(json.dumps(options["more"]))
        assert place == run.place
        run.started.append((config, list(chosen)))

    monkeypatch.setattr(pick, "run_locked", start)
    return run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    run = _run(tmp_path, monkeypatch, "recipe.method=endpoint")
    _front(run)
    return run


@pytest.mark.parametrize(
    ("target", "bits"),
    [
        (("--mean-bits", "3.6"), 3.6),
        (("--mean-bits", "3.68"), 3.6),
        (("--mean-bits", "64"), 5.0),
        (("--max-error", "0.0041"), 3.5),
        (("--max-error", "0.0029"), 4.1),
        (("--bits-for", "23.9dB"), 3.5),
        (("--bits-for", "24 db"), 3.6),
        (("--bits-for", "30"), 4.5),
    ],
)
def test_a_target_takes_the_fewest_bits_that_meet_it_and_the_run_keeps_the_choice(
    target: tuple[str, str], bits: float, run: Run
) -> None:
    """.004 is 23.98 dB, predicted at 3.5 bits. Of 4 bits .002 is predicted, and .003 was measured."""
    code, output = run.pick(*target)
    assert code == 0, output
    assert run.bits == bits and run.started[-1][1] == ["assemble", "reference", "evaluate"]
    request = read_request(run.place.path)
    assert request is not None and request["tables"]["assemble"] == {"mean_bits": bits}
    assert request["tables"]["recipe"] == {"method": "endpoint"}, "what the run had stays"
    assert output.startswith(f"picked    {bits:.2f} mean bits ({bits + 0.1:.2f} weighted by MACs)\n")


@pytest.mark.parametrize("target", ["0", "4", "4.05"])
def test_what_the_search_chose_is_no_choice_of_its_own(target: str, run: Run) -> None:
    config = configuration.load(preset=None, file=None, sets=(), model=None, previous=read_request(run.place.path))
    before = {step.stage.name: step.fingerprint for step in plan.plan(config, run.place)[0]}
    run.pick("--mean-bits", "3.6")
    picked = {step.stage.name: step.fingerprint for step in plan.plan(run.started[-1][0], run.place)[0]}
    assert {name for name in before if before[name] != picked[name]} == {"assemble", "evaluate"}
    code, output = run.pick("--mean-bits", target)
    assert code == 0 and run.bits == 0.0 and ", as the search chose\n" in output
    assert {step.stage.name: step.fingerprint for step in plan.plan(run.started[-1][0], run.place)[0]} == before


def test_as_json_the_choice_and_the_whole_front_are_one_document(run: Run) -> None:
    code, output = run.pick("--mean-bits", "3.6", "--json")
    found = json.loads(output)
    assert code == 0 and found["picked"]["mean_bits"] == 3.6 and found["picked"] in found["front"]
    assert [row["mean_bits"] for row in found["front"]] == [round(3 + k / 10, 1) for k in range(21)]


def test_the_front_around_the_choice_is_shown_with_its_ends(run: Run) -> None:
    _, output = run.pick("--mean-bits", "4.2")
    lines = output.splitlines()
    predicted = 0.008 * 4.0**-1.2
    assert lines[1] == f"predicted error {predicted:.3g} (28.2 dB), of which weights 0.0005"
    assert lines[2] == "the front has 21 points:"
    table = [line.split() for line in lines[4:]]
    assert [row[0] for row in table] == [
        "3.00",
        "...",
        "3.90",
        "4.00",
        "4.10",
        ">",
        "4.30",
        "4.40",
        "4.50",
        "...",
        "5.00",
    ]
    assert table[5][1:4] == ["4.20", "4.30", f"{predicted:.3g}"] and table[5][-1] == "-"
    assert re.search(r"4\.00 +4\.10 +0\.002 \(27\.0 dB\) +0\.003 \(25\.2 dB\)$", lines[7])


def test_it_runs_where_the_options_say(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cluster_gpus", lambda address: 0)
    code, output = run.pick("--mean-bits", "3.6", "--executor", "ray", "--address", "ray://head:10001")
    assert code == 0, output
    cluster = run.started[-1][0].cluster
    assert (cluster.executor, cluster.address) == ("ray", "ray://head:10001")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ((), "pick needs exactly one of --mean-bits, --max-error and --bits-for, e.g. --mean-bits 3.6"),
        (("--mean-bits", "4", "--bits-for", "40dB"), "pick needs exactly one of"),
        (("--mean-bits", "-1"), "--mean-bits must be 0 or more (got -1)"),
        (("--mean-bits", "nan"), "--mean-bits must be 0 or more (got nan)"),
        (("--max-error", "0"), "--max-error must be above 0, e.g. 0.002 (got 0)"),
        (("--bits-for", "much"), "--bits-for must be a number of decibels, e.g. 40dB (got 'much')"),
        (("--mean-bits", "2.9"), "no point of the front has 2.9 mean bits or fewer; the fewest are 3\n"),
        (("--max-error", "1e-4"), "the least is 0.0005 (33.0 dB) at 5.00 mean bits\n"),
        (("--bits-for", "40dB"), "0.0001 (40.0 dB) or less; the least is 0.0005 (33.0 dB) at 5.00 mean bits\n"),
    ],
)
def test_a_target_that_cannot_be_met_is_refused_in_one_line(target: tuple[str, ...], message: str, run: Run) -> None:
    before = (run.place.path / "config.toml").read_bytes()
    code, output = run.pick(*target)
    assert code == 2 and output.startswith("error: ") and output.count("\n") == 1 and message in output
    assert not run.started and (run.place.path / "config.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("method", "allocation"), [("rtn", "uniform"), ("adatsq", "trellis"), ("vidit_q", "decoupled")]
)
def test_a_run_without_a_front_is_refused_with_the_recipe_that_makes_one(
    method: str, allocation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(tmp_path, monkeypatch, f"recipe.method={method}")
    code, output = run.pick("--mean-bits", "3.6")
    assert code == 2 and output.count("\n") == 1 and not run.started
    assert f"recipe.allocation = '{allocation}' has no front of many budgets; make one with: adatsq-pipe run" in output
    assert output.endswith("--set recipe.method=endpoint\n")


def test_an_unfinished_search_is_refused_with_the_command_that_finishes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(tmp_path, monkeypatch, "recipe.method=endpoint")
    code, output = run.pick("--mean-bits", "3.6")
    assert (code, run.started) == (2, [])
    line = f"adatsq-pipe run --run-dir {run.place.display()} --stages capture..search"
    assert output == f"error: the search is not done; finish it with: {line}\n"


def test_another_recipe_after_a_pick_says_how_to_drop_the_choice(run: Run) -> None:
    run.pick("--mean-bits", "3.6")
    changed = CliRunner().invoke(main, ["status", "--run-dir", str(run.place.path), "--set", "recipe.method=rtn"])
    assert changed.exit_code == 2 and changed.output.endswith("; set assemble.mean_bits=0\n")
