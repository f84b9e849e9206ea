"""The weight bits of every layer, as solve left them; read back without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.survey import LayerInfo
from adatsq_pipe.stages.calibration.survey import survey_of


@dataclass(frozen=True, kw_only=True)
class WeightWidths:
    """Bits of weight codes, without scales, of the layers whose inputs are rounded.

    The others, which are fed one vector a sample, have recipe.conditioning_bits.
    """

    bits: Mapping[str, int]
    """By layer, in survey order."""
    sizes: Mapping[str, int]
    """Numbers in the weight, by layer."""

    @property
    def layers(self) -> dict[int, int]:
        """How many layers have each width, from the fewest bits up."""
        return dict(sorted(Counter(self.bits.values()).items()))

    @property
    def mean(self) -> float:
        """Mean bits over the parameters; 0 of no layers."""
        return sum(bits * self.sizes[name] for name, bits in self.bits.items()) / (sum(self.sizes.values()) or 1)

    def __str__(self) -> str:
        counts = [f"{bits} bits in {_counted(count)}" for bits, count in self.layers.items()]
        return f"{', '.join(counts)}; {self.mean:.2f} on average over parameters"


def weight_widths(context: Context) -> WeightWidths:
    """The widths of a finished solve."""
    rows: list[LayerInfo] = [row for row in survey_of(context).layers if row.rounded]
    manifest = context.manifest("solve")
    return WeightWidths(
        bits={row.name: int(manifest.read(f"layer/{row.name}").value["spec"]["weight_bits"]) for row in rows},
        sizes={row.name: row.size for row in rows},
    )


def _counted(layers: int) -> str:
    return "1 layer" if layers == 1 else f"{layers} layers"
