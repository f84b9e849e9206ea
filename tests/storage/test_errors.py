"""A DamagedUnit names its unit, and can be rebuilt from its arguments on the driver."""

from __future__ import annotations

import copy

from adatsq_pipe.storage.errors import DamagedUnit, NoTransformer, StorageError


def test_a_damaged_unit_names_its_stage_and_what_is_wrong() -> None:
    error = DamagedUnit("solve", "blocks.0", "x has 4 bytes")
    assert str(error) == "unit 'blocks.0' of stage solve is damaged: x has 4 bytes"
    assert (error.stage, error.unit, error.what) == ("solve", "blocks.0", "x has 4 bytes")
    assert isinstance(error, StorageError) and issubclass(NoTransformer, StorageError)


def test_a_damaged_unit_can_be_copied() -> None:
    back = copy.copy(DamagedUnit("solve", "blocks.0", "gone"))
    assert (back.stage, back.unit, back.what) == ("solve", "blocks.0", "gone")


def test_a_damaged_unit_ends_the_stream_at_once() -> None:
    assert DamagedUnit.fatal, "every task that reads the unit would fail"
