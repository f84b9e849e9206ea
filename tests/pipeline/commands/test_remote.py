"""What may be submitted, and how it is put for another machine. Nothing here reaches a cluster."""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from adatsq_pipe.pipeline.commands.cli import main
from adatsq_pipe.pipeline.commands.remote import entrypoint
from adatsq_pipe.pipeline.toml_tables import as_sets, parse_set

AT = ("submit", "--address", "http://127.0.0.1:1")
THERE = ("run", "--run-dir", "/mnt/shared/run")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), "only run, pick and compare"),
        (("status",), "only run, pick and compare"),
        (("submit", *THERE), "only run, pick and compare"),
        (("run",), "--run-dir adatsq-run means nothing on another machine"),
        (("run", "--run-dir", "runs/mine"), "/mnt/shared/run"),
        ((*THERE, "--set", "data.prompts_file=captions.txt"), "data.prompts_file captions.txt means nothing"),
        ((*THERE, "--model", "my-model"), "--model my-model means nothing"),
        ((*THERE, "--set", "model.path=my-model"), "--model my-model means nothing"),
        ((*THERE, "--model", "acme/flux@v1"), "hf download acme/flux --local-dir /mnt/shared/flux"),
        ((*THERE, "--model", "hf://acme/flux"), "hf download acme/flux --local-dir /mnt/shared/flux"),
        ((*THERE, "--executor", "inline"), "do not set the executor to inline"),
        ((*THERE, "--set", "cluster.executor=inline"), "do not set the executor to inline"),
        ((*THERE, "--address", "ray://head:10001"), "do not set the address 'ray://head:10001'"),
        ((*THERE, "--set", "cluster.address=local"), "do not set the address 'local'"),
        ((*THERE, "--set", "serch.budget=3.5"), "did you mean 'search'"),
        ((*THERE, "--stages", "sarch"), "sarch"),
        (("pick", "runs/mine", "--mean-bits", "3.6"), "RUN runs/mine means nothing on another machine"),
        ((*THERE, "--config", "nowhere.toml"), "nowhere.toml: there is no such file"),
        ((*THERE, "--colour", "blue"), "No such option"),
    ],
)
def test_what_cannot_be_submitted(command: tuple[str, ...], words: str) -> None:
    done = CliRunner().invoke(main, [*AT, "--", *command])
    assert done.exit_code == 2, done.output
    assert words in done.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--address", "ray://head:10001"), "http://head:8265"),
        (("--address", "http://me:hunter2@head"), "leave it out"),
        ((*AT[1:], "--submission-id", "../x"), "not a submission id"),
        ((*AT[1:], "--working-dir", "nowhere"), "this folder does not exist"),
    ],
)
def test_wrong_options(options: tuple[str, ...], words: str) -> None:
    done = CliRunner().invoke(main, ["submit", *options, "--", *THERE])
    assert done.exit_code == 2 and words in done.output and "hunter2" not in done.output, done.output


def test_an_unreachable_head_is_one_line() -> None:
    done = CliRunner().invoke(main, [*AT, "--", *THERE])
    assert done.exit_code == 1
    assert done.output.startswith("error: nothing answers at http://127.0.0.1:1") and done.output.count("\n") == 1


def test_the_job_joins_its_cluster_and_the_config_file_travels_before_the_sets(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[search]\nbudget = 3.6\n[data]\nprompts = ["it\'s", "two\\nlines # $HOME"]\n')
    line = entrypoint(main, [*THERE, "--config", str(file), "--set", "search.budget=3.9", "--model", "scenes/wan"])
    assert line.startswith("exec python -m adatsq_pipe.pipeline.commands.cli run ") and "\n" not in line
    words = shlex.split(line)
    assert str(file) not in line and words[-2:] == ["--address", "auto"]
    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    assert parse_set(sets) == {
        "search": {"budget": 3.9}, "data": {"prompts": ["it's", "two\nlines # $HOME"]},
    }  # fmt: skip


def test_a_pick_is_submitted_as_it_is() -> None:
    line = entrypoint(main, ["pick", "/mnt/shared/run", "--bits-for", "40dB"])
    assert shlex.split(line)[4:] == ["pick", "/mnt/shared/run", "--bits-for", "40dB", "--address", "auto"]


def test_an_address_that_agrees_stays() -> None:
    assert entrypoint(main, [*THERE, "--address", "auto"]).count("--address") == 1


def test_sets_express_the_tables_of_a_file() -> None:
    text = 'a.b = 1\na.c = "x = [1]"\na.d = [[0.5, 0.25], [1.0]]\na.e.f = true\na.g = -1.5e-3\na.h = ""\n'
    assert parse_set(list(as_sets(tomllib.loads(text)))) == tomllib.loads(text)


@pytest.mark.parametrize("text", ['[a]\n"b.c" = 1', "[a]\nb = [{ c = 1 }]"])
def test_what_a_set_cannot_say_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="use --set instead"):
        list(as_sets(tomllib.loads(text)))
