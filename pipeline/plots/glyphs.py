"""Texts that people wrote, made fit for a picture: the fonts that have their characters, or none."""

from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path

PLAIN = "DejaVu Sans"
"""The font that comes with matplotlib."""
PLACEHOLDERS = ("Last Resort", "STIXNonUnicode", "STIXSize", "cm", "DejaVu")
"""Names of fonts begin with these that have boxes, or symbols in place of characters, or no more than the plain one."""


NOTHING = ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs")
"""Unicode's categories of characters that print nothing."""


def on_one_line(text: str) -> str:
    """The text without line ends and other characters that print nothing: control, format, separators."""
    return " ".join("".join(" " if unicodedata.category(c) in NOTHING else c for c in text).split())


def width_of(text: str) -> int:
    """Columns that the text takes: two of a Chinese, Japanese or Korean character, or of an emoji."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def fonts_for(text: str) -> tuple[str, ...]:
    """Names of installed fonts that have every character of the text between them, the plain one first; none if there
    is a character that no font has."""
    missing, chosen = {ord(c) for c in text} - _characters(PLAIN), [PLAIN]
    for name in _installed() if missing else ():
        if found := missing & _characters(name):
            missing -= found
            chosen.append(name)
        if not missing:
            break
    return () if missing else tuple(chosen)


def escaped(text: str) -> str:
    """The text with every character that no installed font has as its number: U+82B1."""
    return "".join(c if fonts_for(c) else f"U+{ord(c):04X}" for c in text)


@cache
def _installed() -> tuple[str, ...]:
    """Names of the installed fonts that may be drawn with, in order: not those of coloured bitmaps."""
    from matplotlib.font_manager import fontManager  # takes a second to import; `run` with nothing to do draws nothing

    names = {entry.name for entry in fontManager.ttflist}
    return tuple(sorted(name for name in names if not name.startswith(PLACEHOLDERS) and "Color" not in name))


@cache
def _characters(name: str) -> frozenset[int]:
    """The characters of the font of that name; none of a font that cannot be opened, as one of coloured bitmaps."""
    from matplotlib.font_manager import FontProperties, findfont, get_font  # as above

    try:
        path = findfont(FontProperties(family=[name]), fallback_to_default=False)
        return frozenset(get_font(Path(path)).get_charmap())
    except (ValueError, RuntimeError, OSError):
        return frozenset()
