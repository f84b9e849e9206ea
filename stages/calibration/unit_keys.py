"""Names of the units of capture, Fisher scores and Hessians: each is written and read here. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockKey:
    """A block of scheduler steps on a batch of calibration captions, both by their index."""

    block: int
    batch: int

    @property
    def activations(self) -> str:
        """The unit of capture that holds the layers' inputs."""
        return f"activations/{self.block:03d}-{self.batch:03d}"

    @property
    def scores(self) -> str:
        """The unit of Fisher scores."""
        return f"scores/{self.block:03d}-{self.batch:03d}"


def read_block_key(unit: str) -> BlockKey:
    """The block and batch in the name of either unit. Raises ValueError if the name has another form."""
    block, batch = unit.partition("/")[2].split("-")
    return BlockKey(int(block), int(batch))


def trajectory_unit(batch: int) -> str:
    """The unit of capture that holds the recorded run of a batch of calibration captions."""
    return f"trajectory/{batch:03d}"


def read_trajectory_unit(unit: str) -> int:
    """The batch in the name of a recorded run. Raises ValueError if the name has another form."""
    return int(unit.removeprefix("trajectory/"))


def gram_unit(source: str) -> str:
    """The unit of Gram matrices over the input that layer `source` owns."""
    return f"gram/{source}"


def read_gram_unit(unit: str) -> str:
    """The layer that owns the input."""
    return unit.removeprefix("gram/")


DIFFERENTIABLE = "differentiable"
"""The unit of fisher that says whether a gradient can be carried through the pipeline's loop."""


@dataclass(frozen=True)
class SweepKey:
    """A sweep: a batch of calibration captions and a draw of the direction, both by their index."""

    batch: int
    draw: int

    @property
    def unit(self) -> str:
        """The unit of fisher that holds the sweep's effects."""
        return f"sweep/{self.batch:03d}-{self.draw:03d}"


def read_sweep_key(unit: str) -> SweepKey:
    """The batch and draw in the name of a sweep's unit. Raises ValueError if the name has another form."""
    batch, draw = unit.removeprefix("sweep/").split("-")
    return SweepKey(int(batch), int(draw))
