"""Plans from a run directory written by hand: fingerprints, states, what changed and what is damaged."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from adatsq_pipe.pipeline import config, plan
from adatsq_pipe.pipeline.config import RunConfig
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.plan import Step
from adatsq_pipe.storage.manifest import Manifest
from adatsq_pipe.storage.rundir import RunDir

NAMES = ["capture", "fisher", "hessian", "solve", "search", "assemble", "reference", "evaluate"]
NEEDS = {
    "capture": [],
    "fisher": ["capture"],
    "hessian": ["capture", "fisher"],
    "solve": ["capture", "hessian"],
    "search": ["capture", "fisher", "solve"],
    "assemble": ["capture", "solve", "search"],
    "reference": [],
    "evaluate": ["assemble", "reference"],
}


class Made:
    """A model folder of three files, and an empty run directory."""

    def __init__(self, folder: Path) -> None:
        self.model, self.run = folder / "model", RunDir(folder / "run")
        (self.model / "transformer").mkdir(parents=True)
        (self.model / "model_index.json").write_text('{"transformer": ["diffusers", "Transformer"]}')
        (self.model / "transformer" / "config.json").write_text("{}")
        self.weights = self.model / "transformer" / "diffusion_pytorch_model.safetensors"
        self.weights.write_bytes(b"weights")
        self.run.create()

    def config(self, *sets: str) -> RunConfig:
        return config.load(preset=None, file=None, sets=sets, model=str(self.model), previous=None)

    def steps(self, *sets: str) -> dict[str, Step]:
        return {step.stage.name: step for step in plan.plan(self.config(*sets), self.run)[0]}

    def manifest(self, stage: str, sets: tuple[str, ...] = ()) -> Manifest:
        return self.run.manifest(stage, self.steps(*sets)[stage].fingerprint)

    def commit(
        self,
        stage: str,
        *units: str,
        complete: bool = False,
        vouched: tuple[str, ...] = (),
        sets: tuple[str, ...] = (),
    ) -> Manifest:
        """Units with a file each, and the stage's own mark, which vouches for them or for `vouched`."""
        manifest = self.manifest(stage, sets)
        for unit in units:
            (manifest.open_unit(unit) / "bytes").write_text(unit)
            manifest.commit(unit)
        if complete:
            manifest.open_unit("complete")
            manifest.commit("complete", value=dict.fromkeys(vouched or units, "digest"))
        return manifest


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def test_a_fingerprint_is_the_digest_of_name_version_what_is_read_and_the_needs(made: Made) -> None:
    asked = made.config()
    steps, context = plan.plan(asked, made.run)
    names = ["model_index.json", "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"]
    files = {name: hashlib.sha256((made.model / name).read_bytes()).hexdigest() for name in names}
    model, prints = _digest(files), dict[str, str]()
    assert [step.stage.name for step in steps] == NAMES
    for step in steps:
        stage = step.stage
        assert sorted({*stage.needs} & {*NAMES}) == sorted(NEEDS[stage.name])
        needs = {name: prints[name] for name in NEEDS[stage.name]}
        made_of = {
            "stage": stage.name,
            "version": stage.version,
            "reads": stage.reads(asked.settings, model),
            "needs": needs,
        }
        prints[stage.name] = _digest(made_of)
        assert step.fingerprint == prints[stage.name] and step.identity == made_of
    assert dict(context.fingerprints) == prints
    assert context.settings == asked.settings
    assert (context.run, context.model.path, context.model.digest) == (str(made.run.path), made.model, model)


def test_quantized_text_encoders_are_stages_of_their_own_and_whole_ones_change_no_fingerprint(made: Made) -> None:
    (made.model / "text_encoder").mkdir()
    (made.model / "text_encoder" / "config.json").write_text("{}")
    (made.model / "text_encoder" / "model.safetensors").write_bytes(b"weights")
    index = {"transformer": ["diffusers", "Transformer"], "text_encoder": ["transformers", "T5EncoderModel"]}
    (made.model / "model_index.json").write_text(json.dumps(index))
    whole, asked, four = made.steps(), made.steps("text_encoder.bits=16"), made.steps("text_encoder.bits=4")
    assert list(whole) == NAMES and {n: s.fingerprint for n, s in asked.items()} == {
        n: s.fingerprint for n, s in whole.items()
    }
    assert list(four) == [*NAMES[:5], "text_encoder", *NAMES[5:], "text_effect"]
    assert [n for n in NAMES if four[n].fingerprint != whole[n].fingerprint] == ["assemble", "evaluate"]
    needs = {name: four[name].identity["needs"] for name in ("assemble", "text_effect")}
    prints = {name: step.fingerprint for name, step in four.items()}
    assert needs["assemble"] == {name: prints[name] for name in ("capture", "solve", "search", "text_encoder")}
    assert needs["text_effect"] == {name: prints[name] for name in ("text_encoder", "reference")}
    eight = made.steps("text_encoder.bits=8")
    assert eight["text_encoder"].fingerprint != prints["text_encoder"]
    assert made.steps("text_encoder.bits=4", "search.budget=3.6")["text_effect"].fingerprint == prints["text_effect"]


def test_what_comes_with_assemble_and_evaluate(made: Made) -> None:
    def beside(*stages: str, bits: int = 4) -> list[str]:
        return plan.with_optional(made.config(f"text_encoder.bits={bits}"), stages)[len(stages) :]

    assert beside("assemble", "evaluate") == ["text_encoder", "text_effect"]
    assert beside("solve", "assemble") == ["text_encoder"] and beside("search") == []
    assert beside("assemble", "evaluate", bits=16) == []


def test_the_context_has_the_cluster_s_memory_and_share(made: Made) -> None:
    context = plan.context_of(made.config("cluster.gpu_memory=24", "cluster.gpus_per_worker=0.25"), made.run)
    assert (context.gpu_memory, context.device_share) == (24, 0.25)


def test_a_change_reaches_the_stages_below_and_no_other(made: Made) -> None:
    before, after = made.steps(), made.steps("search.width=3")
    same = {name for name in NAMES if before[name].fingerprint == after[name].fingerprint}
    assert same == {"capture", "fisher", "hessian", "solve", "reference"}
    made.weights.write_bytes(b"others!")
    assert all(made.steps()[name].fingerprint != before[name].fingerprint for name in NAMES)


@pytest.mark.parametrize(
    "name",
    [
        "note.txt", "preview.png", "flux1-dev.safetensors", "onnx/model.onnx", "adatsq-run/run.json", "README.md",
        "transformer/notes.md", "transformer/diffusion_pytorch_model.fp16.safetensors", "transformer/optimizer.pt",
        "transformer/diffusion_pytorch_model.bin", "unused/config.json", "sampling.json",
    ],
)  # fmt: skip
def test_a_file_in_the_model_folder_that_is_not_loaded_makes_nothing_stale(name: str, made: Made) -> None:
    before = {stage: step.fingerprint for stage, step in made.steps().items()}
    (made.model / name).parent.mkdir(parents=True, exist_ok=True)
    (made.model / name).write_text('{"call": {}}')
    assert {stage: step.fingerprint for stage, step in made.steps().items()} == before
    (made.model / "transformer" / "config.json").write_text('{"layers": 3}')
    assert not set(before.values()) & {step.fingerprint for step in made.steps().values()}


def test_nothing_done_is_missing_and_promises_no_number_of_units(made: Made) -> None:
    steps = made.steps()
    assert {step.state for step in steps.values()} == {"missing"}
    assert {name: (step.done, step.expected) for name, step in steps.items()} == {
        **dict.fromkeys(NAMES, (0, None)),
        "reference": (0, 8),
    }, "16 built-in captions, 3 seeds, 6 at a time: what needs no other stage is known"


def test_the_number_of_units_is_shown_once_the_needs_are_done(made: Made) -> None:
    made.commit("assemble", "model", complete=True)
    sets = ("evaluate.prompts=['a','b','c']", "evaluate.seeds=3", "evaluate.batch=2")
    steps = made.steps(*sets)
    assert (steps["reference"].expected, steps["evaluate"].expected) == (5, None), "nine pictures, two at a time"
    made.commit("reference", "draw/000", sets=sets, complete=True)
    assert made.steps(*sets)["evaluate"].expected == 5
    made.manifest("assemble").withdraw("model")
    assert made.steps(*sets)["evaluate"].expected is None


def test_a_stage_is_partial_done_or_damaged(made: Made) -> None:
    manifest = made.commit("fisher", "scores/0", "scores/1")
    step = made.steps()["fisher"]
    assert (step.state, step.done, step.complete) == ("partial", 2, False)
    made.commit("fisher", complete=True, vouched=("scores/0", "scores/1"))
    step = made.steps()["fisher"]
    assert (step.state, step.done, step.complete) == ("done", 2, True)
    (manifest.unit_folder("scores/1") / "bytes").write_text("longer than it was")
    step = made.steps()["fisher"]
    assert (step.state, step.done, step.complete) == ("damaged", 1, False)
    assert step.damaged == (("scores/1", "a file is missing or has the wrong size"),)
    (manifest.folder / "markers" / "scores" / "0.json").write_text("{}")
    step = made.steps()["fisher"]
    assert (step.state, step.done) == ("damaged", 0)
    assert [unit for unit, _ in step.damaged] == ["scores/0", "scores/1"]
    assert "is not as it was written" in step.damaged[0][1]


def test_a_finished_stage_that_lacks_a_unit_it_vouched_for_is_not_done(made: Made) -> None:
    made.commit("fisher", "scores/0", complete=True, vouched=("scores/0", "scores/1"))
    step = made.steps()["fisher"]
    assert (step.state, step.complete, step.done) == ("partial", False, 1)


def test_a_finished_stage_may_have_more_units_than_it_vouched_for(made: Made) -> None:
    made.commit("search", "front", "more", complete=True, vouched=("front",))
    assert made.steps()["search"].state == "done"


def test_an_unreadable_mark_of_completion_counts_as_none(made: Made) -> None:
    manifest = made.commit("fisher", "scores/0", complete=True)
    (manifest.folder / "markers" / "complete.json").write_text("torn")
    assert made.steps()["fisher"].state == "partial"


def test_a_stale_stage_says_which_fields_changed(made: Made) -> None:
    for name, step in made.steps().items():
        made.run.record_identity(name, step.fingerprint, dict(step.identity))
    found = made.steps("search.width=3", "search.budget=4.5")
    assert found["solve"].state == "missing" and found["solve"].changed == (), "its own identity is no change"
    assert found["search"].state == "stale"
    assert found["search"].changed == (("reads.search.budget", 4.0, 4.5), ("reads.search.width", 2, 3))
    before = made.steps()["search"].fingerprint
    assert found["assemble"].changed == (("needs.search", before, found["search"].fingerprint),)
    both = made.steps("capture.rows=7", "search.width=3")["search"]
    assert both.changed == (("reads.search.width", 2, 3),), "own fields, where there are any"
    made.run.manifest("search", found["search"].fingerprint).open_unit("front")
    made.run.manifest("search", found["search"].fingerprint).commit("front")
    begun = made.steps("search.width=3", "search.budget=4.5")["search"]
    assert (begun.state, begun.changed) == ("partial", ())


def test_changes_are_against_the_newest_folder(made: Made) -> None:
    for age, width in ((100, 5), (50, 7)):
        step = made.steps(f"search.width={width}")["search"]
        made.run.record_identity("search", step.fingerprint, dict(step.identity))
        path = made.run.path / "search" / step.fingerprint[:16] / "identity.json"
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    step = made.steps()["search"]
    assert step.changed == (("reads.search.width", 7, 2),)
    made.run.record_identity("search", step.fingerprint, dict(step.identity))
    assert made.steps()["search"].changed == (("reads.search.width", 7, 2),), "its own folder is none of the others"


def test_a_failed_unit_shows_its_error_s_last_line(made: Made) -> None:
    manifest = made.manifest("solve")
    manifest.fail("layer/a", "Traceback\n  deep inside\nValueError: the matrix is singular\n")
    manifest.fail("layer/b", "  \n")
    assert made.steps()["solve"].failed == {"layer/a": "ValueError: the matrix is singular"}


def test_verify_counts_every_unit_and_names_those_whose_bytes_changed(made: Made) -> None:
    fisher = made.commit("fisher", "scores/0", "scores/1", complete=True)
    solve = made.commit("solve", "layer/a")
    assert plan.verify(made.run) == (3, [])
    (fisher.unit_folder("scores/1") / "bytes").write_text("SCORES/1")
    assert made.steps()["fisher"].state == "done", "a plan compares sizes, `verify` contents"
    (solve.unit_folder("layer/a") / "bytes").unlink()
    checked, wrong = plan.verify(made.run)
    assert checked == 3 and [entry[:2] for entry in wrong] == [("fisher", "scores/1"), ("solve", "layer/a")]
    assert "does not have the digest" in wrong[0][2] and "is missing" in wrong[1][2]
    step = made.steps()["fisher"]
    assert step.state == "damaged" and step.damaged == (("scores/1", wrong[0][2]),), "what `verify` found is kept"


def test_a_file_that_is_put_back_is_sound_again_when_verify_has_looked(made: Made) -> None:
    manifest = made.commit("fisher", "scores/0", complete=True)
    path = manifest.unit_folder("scores/0") / "bytes"
    path.write_text("SCORES/0")
    plan.verify(made.run)
    path.write_text("scores/0")
    assert made.steps()["fisher"].state == "damaged"
    assert plan.verify(made.run) == (1, []) and made.steps()["fisher"].state == "done"


def test_verify_names_lost_and_torn_markers(made: Made) -> None:
    manifest = made.commit("fisher", "scores/0", "scores/1", complete=True)
    (manifest.folder / "markers" / "scores" / "1.json").unlink()
    checked, wrong = plan.verify(made.run)
    assert checked == 2
    assert wrong == [("fisher", "scores/1", "its marker is missing, and the stage is marked finished")]
    (manifest.folder / "markers" / "complete.json").write_text("torn")
    assert [entry[:2] for entry in plan.verify(made.run)[1]] == [("fisher", "complete")]


def test_verify_names_a_prompt_s_picture_that_was_damaged(made: Made) -> None:
    name = hashlib.sha256(b"png").hexdigest()
    (made.run.path / "given").mkdir()
    (made.run.path / "given" / name).write_bytes(b"PNG")
    assert [entry[:2] for entry in plan.verify(made.run)[1]] == [("given", name)]


def test_a_plan_as_json_has_its_states_units_and_changes(made: Made) -> None:
    made.commit("assemble", "model", complete=True)
    for name, step in made.steps("search.width=3").items():
        made.run.record_identity(name, step.fingerprint, dict(step.identity))
    manifest = made.commit("fisher", "scores/0")
    manifest.fail("scores/1", "OSError: full")
    (manifest.unit_folder("scores/0") / "bytes").unlink()
    rows = {row["stage"]: row for row in plan.as_json(list(made.steps().values()))}
    assert list(rows) == NAMES
    assert rows["fisher"] == {
        "stage": "fisher",
        "state": "damaged",
        "fingerprint": made.steps()["fisher"].fingerprint,
        "units": 0,
        "expected": None,
        "bytes": 0,
        "memory": 0,
        "damaged": [{"unit": "scores/0", "what": "a file is missing or has the wrong size"}],
        "failed": {"scores/1": "OSError: full"},
        "changed": [],
    }
    assert rows["search"]["changed"] == [{"field": "reads.search.width", "old": 3, "new": 2}]
    assert (rows["assemble"]["state"], rows["assemble"]["units"]) == ("done", 1)
    json.dumps(rows)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("all", NAMES),
        ("solve", ["solve"]),
        ("solve,fisher", ["fisher", "solve"]),
        (" solve , fisher,solve", ["fisher", "solve"]),
        ("hessian..search", ["hessian", "solve", "search"]),
        ("search..search", ["search"]),
        ("capture,assemble..evaluate", ["capture", "assemble", "reference", "evaluate"]),
    ],
)
def test_stages_are_chosen_in_the_order_of_a_run(text: str, wanted: list[str]) -> None:
    assert plan.choose(text) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no stage ''; there are capture, fisher, hessian, solve, search, assemble, reference, evaluate"),
        ("solv", "there is no stage 'solv'; there are capture"),
        ("capture..x", "there is no stage 'x'"),
        ("..solve", "there is no stage ''"),
        ("search..solve", r"search comes after solve; write solve\.\.search"),
    ],
)
def test_stages_that_are_none_are_refused_with_what_may_be_written(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan.choose(text)
