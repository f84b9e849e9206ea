"""The fork server ignores a preload that cannot be imported, and every command line then imports all by itself."""

from __future__ import annotations

import importlib


def test_what_is_preloaded_can_be_imported() -> None:
    importlib.import_module("tests.whole.preloaded")
