"""What is read from the source of diffusers."""

from __future__ import annotations

import ast

import pytest

from adatsq_pipe.stages.architecture import support


def test_a_source_is_read_again_where_python_miscounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPython 3.11.7 raises SystemError now and then, where another thread parses too."""
    wanted, real, tries = support.call_source("FluxPipeline"), ast.parse, list[str]()

    def parse(text: str) -> ast.Module:
        tries.append(text)
        if len(tries) == 1:
            raise SystemError("AST constructor recursion depth mismatch (before=117, after=82)")
        return real(text)

    monkeypatch.setattr(ast, "parse", parse)
    assert support.call_source("FluxPipeline") == wanted
    assert len(tries) == 2 and wanted is not None and "prompt" in wanted.arguments
