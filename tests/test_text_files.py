"""Text files are UTF-8 whatever the locale says: no line of the product leaves the encoding to it."""

from __future__ import annotations

import ast
import io
import sys
from pathlib import Path

import pytest

from adatsq_pipe.pipeline.commands.cli import main
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.toml_tables import parse_set

ROOT = Path(__file__).parent.parent
ROOMS = ("cluster", "pipeline", "stages", "storage")
TEXT_METHODS = ("read_text", "write_text")
ENCODING_AT = {"read_text": 0, "write_text": 1}


def _mode(call: ast.Call, place: int) -> str:
    """The mode of an `open`, "r" if there is none."""
    named = [word.value for word in call.keywords if word.arg == "mode"]
    found = named[0] if named else call.args[place] if len(call.args) > place else ast.Constant("r")
    return found.value if isinstance(found, ast.Constant) and isinstance(found.value, str) else ""


def left_to_the_locale(text: str) -> list[int]:
    """Lines whose `open`, `read_text` or `write_text` names no encoding and is not of bytes."""
    lines = []
    for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
        function, named = call.func, any(word.arg == "encoding" for word in call.keywords)
        if isinstance(function, ast.Attribute) and function.attr in TEXT_METHODS:
            if not named and len(call.args) <= ENCODING_AT[function.attr]:
                lines.append(call.lineno)
        elif isinstance(function, ast.Name) and function.id == "open":
            if not named and "b" not in _mode(call, 1):
                lines.append(call.lineno)
        elif isinstance(function, ast.Attribute) and function.attr in ("open", "fdopen"):
            mode = _mode(call, 1 if function.attr == "fdopen" else 0)
            opens_text = set(mode) <= set("rwax+t") and mode
            if not named and opens_text and (call.args or isinstance(function.value, ast.BinOp)):
                lines.append(call.lineno)
    return lines


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("path.read_text()", 1),
        ("path.read_text('utf-8')", 0),
        ("path.read_text(encoding='utf-8')", 0),
        ("path.write_text('a')", 1),
        ("path.write_text('a', encoding='utf-8')", 0),
        ("write_text(path, 'a')", 0),
        ("open('a')", 1),
        ("open('a', 'rb')", 0),
        ("path.open('w')", 1),
        ("(folder / 'a').open()", 1),
        ("path.open('rb')", 0),
        ("os.fdopen(1, 'w')", 1),
        ("Image.open(path)", 0),
    ],
)
def test_an_encoding_left_to_the_locale_is_found(text: str, found: int) -> None:
    assert len(left_to_the_locale(text)) == found


def test_captions_on_the_command_line_are_utf_8_in_a_locale_that_knows_none() -> None:
    """Python reads such an argument as surrogates."""
    read_as_ascii = "evaluate.prompts=['Märchen 東京']".encode().decode("ascii", "surrogateescape")
    assert parse_set([read_as_ascii]) == {"evaluate": {"prompts": ["Märchen 東京"]}}
    assert parse_set(["evaluate.prompts=['Märchen 東京']"]) == {"evaluate": {"prompts": ["Märchen 東京"]}}
    with pytest.raises(ConfigError, match="is not UTF-8; write it so"):
        parse_set(["data.prompts=['\udcff']"])


@pytest.mark.parametrize("out", ["stdout", "stderr"])
def test_what_a_terminal_cannot_show_ends_no_command(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, out, io.TextIOWrapper(shown, encoding="ascii", errors="strict"))
    with pytest.raises(SystemExit):
        main(["status", "--run-dir", "/nowhere/東京"], standalone_mode=True)
    print("東京", file=getattr(sys, out), flush=True)
    assert b"\\u6771\\u4eac" in shown.getvalue()


def test_every_text_file_of_the_product_is_read_and_written_as_utf_8() -> None:
    files = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    assert len(files) > 100
    found = [
        f"{path.relative_to(ROOT)}:{line}" for path in files for line in left_to_the_locale(path.read_text("utf-8"))
    ]
    assert found == []
