"""What a shell's Tab offers, through click's own protocol."""

from __future__ import annotations

import pytest
from click.shell_completion import ShellComplete

from adatsq_pipe.pipeline.commands.cli import main


def offered(*words: str) -> list[str]:
    complete = ShellComplete(main, {}, "adatsq-pipe", "_ADATSQ_PIPE_COMPLETE")
    return [item.value for item in complete.get_completions(list(words[:-1]), words[-1])]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("stat",), ["status"]),
        (("settings", "s"), ["solve", "search"]),
        (("settings", "nothing"), []),
        (("run", "--set", "s"), ["solve.", "search."]),
        (("run", "--set", "cap"), ["capture.rows=", "capture.block="]),
        (("run", "--set", "search.b"), ["search.bits=", "search.budget=", "search.beam=", "search.batches="]),
        (("why", "--set", "search.bud"), ["search.budget=", "search.budget=4.0"]),
        (("inspect", "--set", "solve.damp"), ["solve.damping=", "solve.damping=0.01"]),
        (("run", "--set", "nothing.at"), []),
        (("run", "--set", "nothing"), []),
        (("run", "--stages", "a"), ["all", "assemble"]),
        (("run", "--stages", "capture,f"), ["capture,fisher"]),
        (("run", "--stages", "solve..e"), ["solve..evaluate"]),
        (("run", "--stages", "capture,solve..a"), ["capture,solve..assemble"]),
        (("run", "--model", "scenes/flux"), ["scenes/flux-dev", "scenes/flux-schnell"]),
        (("run", "--preset", "w"), ["w4a4", "w3a3"]),
    ],
)
def test_tab_offers_what_fits(words: tuple[str, ...], wanted: list[str]) -> None:
    assert sorted(offered(*words)) == sorted(wanted)


def test_a_model_that_is_not_built_in_is_a_folder() -> None:
    complete = ShellComplete(main, {}, "adatsq-pipe", "_ADATSQ_PIPE_COMPLETE")
    (item,) = complete.get_completions(["inspect"], "/mnt/mod")
    assert (item.value, item.type) == ("/mnt/mod", "dir")
