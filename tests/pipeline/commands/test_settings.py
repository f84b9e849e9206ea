"""`settings`: keys, types, defaults and texts of tables written by hand and of the real ones."""

from __future__ import annotations

import json
from typing import ClassVar, Literal

from click.testing import CliRunner
from pydantic import Field

from adatsq_pipe.pipeline.commands.cli import main
from adatsq_pipe.pipeline.commands.settings import settings_of, text
from adatsq_pipe.pipeline.config import kinds
from adatsq_pipe.stages.base.settings import Settings


class Base(Settings):
    size: int = 1
    """Size of
    the thing."""
    plain: str = "a"


class Derived(Base):
    """[derived] A table for this test."""

    table: ClassVar[str] = "derived"

    size: int = Field(default=3, ge=2, lt=9)
    kind: Literal["x", "y"] = "y"
    """Kind of the thing."""
    many: tuple[tuple[float, int], ...] = ((0.5, 1),)


def test_a_table_of_two_classes_has_the_keys_of_both_the_later_value_and_the_nearest_text() -> None:
    assert [(s.key, s.type, s.default, s.text) for s in settings_of(Derived)] == [
        ("size", "int, >= 2, < 9", 3, "Size of the thing."),
        ("plain", "str", "a", ""),
        ("kind", "Literal['x', 'y']", "y", "Kind of the thing."),
        ("many", "tuple[tuple[float, int], ...]", [[0.5, 1]], ""),
    ]


def test_a_table_is_printed_with_its_heading_and_indented_texts() -> None:
    assert text(Derived).splitlines()[:5] == [
        "[derived] A table for this test.",
        "size = 3   (int, >= 2, < 9)",
        "    Size of the thing.",
        'plain = "a"   (str)',
        "kind = \"y\"   (Literal['x', 'y'])",
    ]


def test_json_has_every_table_and_every_key() -> None:
    done = CliRunner().invoke(main, ["settings", "--json"])
    listed = json.loads(done.output)
    assert {name: list(keys) for name, keys in listed.items()} == {
        name: list(kind.model_fields) for name, kind in kinds().items()
    }
    assert listed["data"]["count"] == {
        "key": "count",
        "type": "int, >= 1, <= 100000",
        "default": 32,
        "text": "How many captions are built in. Set beside captions of your own, it takes the first so many of them.",
    }
    assert listed["recipe"]["solver"]["default"] == "gptq", "the default method's own value"


def test_one_table_is_shown_alone_and_an_unknown_one_is_refused() -> None:
    one = CliRunner().invoke(main, ["settings", "search"])
    assert one.exit_code == 0 and one.output.startswith("[search]") and "[model]" not in one.output
    none = CliRunner().invoke(main, ["settings", "serach"])
    assert none.exit_code == 2 and none.output.startswith("error: unknown table 'serach'; choose from model, data,")
