"""A stage whose code changed has a new version, or somebody has said that its bytes stay."""

from __future__ import annotations

import ast
import json
import sys

import pytest

from adatsq_pipe.stages.base.stage import STAGES
from tests.support import stage_sources


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="another Python writes the same code differently")
@pytest.mark.parametrize("stage", STAGES)
def test_changed_code_comes_with_a_version_or_a_note(stage: str) -> None:
    recorded, now = json.loads(stage_sources.RECORD.read_text())[stage], stage_sources.source(stage)
    assert now == recorded, (
        f"the code behind stage {stage!r} changed. If its bytes change, raise `version` in its STAGE; if they stay, "
        "show it (.github/CONTRIBUTING.md). Then run: python -m tests.support.stage_sources"
    )


def test_the_digest_follows_code_and_not_words() -> None:
    def code(text: str) -> str:
        return stage_sources._code(ast.parse(text))

    assert code('def f(x):\n    """Words."""\n    return x + 1  # why') == code("def f(x):\n    return x + 1")
    assert code("def f(x):\n    return x + 1") != code("def f(x):\n    return x - 1")


def test_the_solver_and_the_grids_are_behind_solve() -> None:
    numerics = "adatsq_pipe.stages.numerics"
    assert {f"{numerics}.gptq", f"{numerics}.grid"} <= set(stage_sources.reached("solve"))
