"""Every setting as it is in the end, with where it comes from; the text is a --config file again."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from adatsq_pipe.pipeline.commands.cli import main
from adatsq_pipe.pipeline.config import kinds
from adatsq_pipe.storage.rundir import RunDir


def shown(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["run", "--show-config", *arguments])
    assert (done.exit_code, done.stderr) == (0, "")
    return done.stdout


def plain(*arguments: str) -> Any:
    return json.loads(shown("--json", *arguments))


def test_every_table_and_key_is_there_and_nothing_is_made(tmp_path: Path) -> None:
    found = plain("--run-dir", str(tmp_path / "run"))
    assert {name: set(table) for name, table in found.items()} == {
        name: set(kind.model_fields) for name, kind in kinds().items()
    }
    assert not (tmp_path / "run").exists()


def test_where_a_setting_comes_from(tmp_path: Path) -> None:
    run, file = RunDir(tmp_path / "run"), tmp_path / "mine.toml"
    run.create()
    (run.path / "config.toml").write_text(
        'preset = "w3a3"\n[tables.capture]\nrows = 7\n[tables.search]\nwidth = 3\n[tables.data]\nseed = 4\n'
    )
    file.write_text("[search]\nwidth = 4\n[evaluate]\nseeds = 2\n")
    sets = ("--set", "evaluate.seeds=1", "--set", "model.call.num_inference_steps=9", "--executor", "inline")
    found = plain("--run-dir", str(run.path), "--config", str(file), *sets)

    def of(name: str) -> tuple[Any, str]:
        table, _, key = name.partition(".")
        return found[table][key]["value"], found[table][key]["from"]

    assert of("capture.rows") == (7, "the run's config.toml") and of("data.seed") == (4, "the run's config.toml")
    assert of("search.width") == (4, f"--config {file}") and of("evaluate.seeds") == (1, "--set")
    assert of("cluster.executor") == ("inline", "--executor or --address")
    assert of("solve.damping") == (0.01, "default") and of("recipe.weight_bits") == (3, "the preset w3a3")
    assert of("recipe.transform") == ("hadamard", "the method endpoint")
    call, origin = of("model.call")
    assert (call["num_inference_steps"], call["height"]) == (9, 32)
    assert origin == "the model folder's sampling.json, --set"
    prompts, origin = of("data.prompts")
    assert len(prompts) == 32 and origin == "built-in captions"


@pytest.mark.parametrize("sets", [(), ("recipe.method='adatsq'", 'model.call.prompt_2="null"', "search.beam=true")])
def test_the_text_is_a_config_file_that_gives_the_same_settings(sets: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "shown.toml"
    changes = [part for text in sets for part in ("--set", text)]
    file.write_text(shown("--run-dir", str(tmp_path / "run"), *changes))
    again = shown("--run-dir", str(tmp_path / "run"), "--config", str(file))
    assert tomllib.loads(again) == tomllib.loads(file.read_text())
    assert all(line == "" or "  # " in line or line.startswith("[") for line in again.splitlines())


def test_what_a_prompts_file_fills_is_a_comment(tmp_path: Path) -> None:
    file, captions = tmp_path / "shown.toml", tmp_path / "captions.txt"
    captions.write_text('a red circle\na # blue "square"\n', encoding="utf-8")
    text = shown(
        "--set", f"data.prompts_file={captions}", "--set", 'model.world=""', "--run-dir", str(tmp_path / "run")
    )
    file.write_text(text)
    assert '# prompts = ["a red circle", "a # blue \\"square\\""]  # data.prompts_file' in text
    assert tomllib.loads(text)["data"]["prompts_file"] == str(captions)
    again = plain("--config", str(file), "--run-dir", str(tmp_path / "run"))
    assert again["data"]["prompts"]["value"] == ["a red circle", 'a # blue "square"']


def test_a_wrong_setting_is_refused_as_in_a_run(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main, ["run", "--show-config", "--set", "search.budge=3", "--run-dir", str(tmp_path / "r")]
    )
    assert (done.exit_code, done.stdout) == (2, "") and "did you mean 'budget'?" in done.stderr
