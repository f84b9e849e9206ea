"""What capture finds out about a denoiser before it samples anything: its layers, its steps, and the calls of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["tokens", "conditioning"]


@dataclass(frozen=True, kw_only=True)
class LayerInfo:
    """One linear layer that is quantized."""

    name: str
    in_features: int
    out_features: int
    role: Role
    """"tokens": its input has one row for each token, and is rounded. "conditioning": its input is one vector for each
    sample (adaLN modulation), and stays whole."""
    input_of: str
    """The layer that owns the stored input: the first of those that are fed the same tensor."""
    macs: int | None
    """Multiply-accumulates for one sample in one call; None where no call was watched."""
    component: str = ""
    """The pipeline's denoiser that has the layer, where there are several; else empty."""

    @property
    def rounded(self) -> bool:
        """Whether its input is rounded to activation bits."""
        return self.role == "tokens"

    @property
    def owns_input(self) -> bool:
        return self.input_of == self.name

    @property
    def size(self) -> int:
        """Numbers in the weight."""
        return self.in_features * self.out_features

    def plain(self) -> dict[str, Any]:
        """The row that is stored."""
        row: dict[str, Any] = {
            "name": self.name,
            "in": self.in_features,
            "out": self.out_features,
            "kind": self.role,
            "source": self.input_of,
            "macs": self.macs,
        }
        return {**row, "part": self.component} if self.component else row

    @classmethod
    def from_plain(cls, row: Mapping[str, Any]) -> LayerInfo:
        """The layer of a stored row; what the row lacks is a layer of tokens that owns its input."""
        return cls(
            name=row["name"],
            in_features=row["in"],
            out_features=row["out"],
            role=row.get("kind", "tokens"),
            input_of=row.get("source", row["name"]),
            macs=row.get("macs"),
            component=row.get("part", ""),
        )


@dataclass(frozen=True, kw_only=True)
class CallSurvey:
    """What one call of a denoiser shows: its layers, and the linears that are left because they ran more than once
    (`repeated`) or never (`unused`)."""

    layers: tuple[LayerInfo, ...]
    unused: tuple[str, ...]
    repeated: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Survey(CallSurvey):
    """What all calls of a run show."""

    step_of_call: tuple[int, ...]
    """The scheduler step of every denoiser call, in order."""
    timesteps: tuple[float, ...]
    """The noise level of every step, in the denoiser's unit."""
    parameters: int
    """Numbers in all denoisers."""
    steps_of_component: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of several denoisers, the steps at which each is called; of one, empty."""

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def calls_at(self, step: int) -> int:
        """Denoiser calls at a step."""
        return self.step_of_call.count(step)

    def steps_of(self, layer: LayerInfo) -> list[int]:
        """The steps at which a layer is used: all, but of several denoisers each has its own."""
        return list(self.steps_of_component[layer.component] if self.steps_of_component else range(self.steps))

    def owners(self) -> list[LayerInfo]:
        """The layers whose inputs are stored."""
        return [layer for layer in self.layers if layer.owns_input]

    def plain(self) -> dict[str, Any]:
        """The value of the unit `survey`."""
        value: dict[str, Any] = {
            "layers": [layer.plain() for layer in self.layers],
            "unused": list(self.unused),
            "repeated": list(self.repeated),
        }
        if self.steps_of_component:
            value["parts"] = {part: list(steps) for part, steps in self.steps_of_component.items()}
        return {
            **value,
            "steps": self.steps,
            "calls": list(self.step_of_call),
            "timesteps": list(self.timesteps),
            "parameters": self.parameters,
        }

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> Survey:
        return cls(
            layers=tuple(LayerInfo.from_plain(row) for row in value["layers"]),
            unused=tuple(value["unused"]),
            repeated=tuple(value["repeated"]),
            step_of_call=tuple(value["calls"]),
            timesteps=tuple(value["timesteps"]),
            parameters=value["parameters"],
            steps_of_component={part: tuple(steps) for part, steps in value.get("parts", {}).items()},
        )
