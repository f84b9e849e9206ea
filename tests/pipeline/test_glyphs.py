"""Texts in pictures: the fonts that have their characters, and what stands there where none has."""

from __future__ import annotations

import pytest

from adatsq_pipe.pipeline.plots import glyphs
from adatsq_pipe.pipeline.plots.glyphs import PLAIN, escaped, fonts_for, on_one_line, width_of

NO_FONT = "\U0010fffd"
"""A character for private use: only the font of last resort, which has a box for everything, says that it has it."""
ONLY_STIX = "\u2316"


def test_plain_text_has_the_plain_font() -> None:
    assert fonts_for("a red circle, Mädchen, ж, α, ✓, $_$") == (PLAIN,) == fonts_for("")


def test_a_font_that_has_what_the_plain_one_lacks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "_installed", lambda: ("no such font", "STIXGeneral"))
    assert fonts_for(f"a {ONLY_STIX}") == (PLAIN, "STIXGeneral")
    assert fonts_for(f"{ONLY_STIX} and {NO_FONT}") == ()


def test_boxes_of_the_font_of_last_resort_are_no_characters() -> None:
    assert fonts_for(NO_FONT) == ()
    assert not [name for name in glyphs._installed() if name.startswith("Last Resort")]


def test_what_no_font_has_is_written_as_a_number() -> None:
    assert escaped(f"model {NO_FONT}$x$") == "model U+10FFFD$x$"


def test_a_text_is_one_line_of_what_can_be_printed() -> None:
    assert on_one_line(" a\nb\r\n\tc\x07d\u2028e\u200bf ") == "a b c d e f"


def test_chinese_characters_and_emoji_take_two_columns() -> None:
    assert width_of("ab") == 2 and width_of("花a") == 3 and width_of("🌸") == 2
