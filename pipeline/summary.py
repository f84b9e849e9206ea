"""Summary: a finished run in numbers, as report/summary.json holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from adatsq_pipe.pipeline.kind_quality import KindQuality, Metric
from adatsq_pipe.stages.base.compression import resized, transformer_line

SAME_BITS = 0.005
"""Means of bits that differ by less are the same."""
FILE = "summary.json"
"""Name of the file in the run directory's `report`."""
CAST_WEIGHTS = "cast weights"
"""What the table of disk and memory calls the weights that workers shared."""
PAGE = "report.html"
"""Name of the page there."""
UNFINISHED = "unfinished.html"
"""Name of the page of a run that is not finished: that of what was finished before stays beside it."""


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over pictures, and the worst picture's value."""

    mean: float
    standard_error: float
    """Over captions, each the mean of its seeds; 0 of a single caption, which has none."""
    worst: float


@dataclass(frozen=True, kw_only=True)
class PerStep:
    """Means by denoising step."""

    latent_relative_error: Sequence[float]
    latent_psnr_db: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Quantized against full precision, on held-out captions and paired seeds."""

    captions: int
    seeds: int
    latent_error: Mean
    """Relative L2 error of the final latents."""
    latent_psnr: Mean
    """dB."""
    psnr: Mean
    """Of the pictures, dB."""
    ssim: Mean
    asked_for: Mapping[str, Any] | None
    """GenEval's tasks and Frechet distances, where a program can score the pictures; else None."""
    per_step: PerStep
    by_kind: Sequence[KindQuality] = field(default_factory=list)
    """Where captions have kinds: what was measured of each."""
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    """The optional metrics that were asked for: lpips, clip."""


@dataclass(frozen=True, kw_only=True)
class Bits:
    """Effective bits."""

    weights_with_scales: float
    """Mean bits of a quantized weight, with its scales and zero points."""
    weights_mean: float
    """Mean bits of a weight's code over the parameters of the layers whose inputs are rounded, without scales."""
    weight_layers: Mapping[str, int]
    """How many of those layers have each width of codes."""
    activations_mean: float
    """Over timesteps and layers."""
    activations_mac_weighted: float
    """The same, weighted by multiply-accumulates."""
    budget: float
    """The mean that the policy may have: search.budget, or what was picked of the front."""
    activations_run: float | None = None
    """The mean over timesteps and layers at which the held-out pictures were drawn: `activations_mean`, unless their
    runs have other steps than the calibration's. None where no input is rounded, or where it was not counted."""

    @property
    def ran_otherwise(self) -> bool:
        """Whether the pictures were drawn at other mean bits than the policy has."""
        return self.activations_run is not None and abs(self.activations_run - self.activations_mean) > SAME_BITS


@dataclass(frozen=True, kw_only=True)
class Size:
    """Bytes, in bfloat16 and quantized, of the quantized layers and of the whole transformer."""

    layers: int
    """How many layers are quantized."""
    layer_bytes_bf16: int
    layer_bytes: int
    transformer_bytes_bf16: int
    transformer_bytes: int
    layer_ratio: float
    """How many times smaller; below 1 larger."""
    transformer_ratio: float

    def line(self) -> str:
        """Both ratios in words."""
        return transformer_line(self.transformer_ratio, self.layer_ratio)


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """A quantized text encoder."""

    name: str
    """The component."""
    kind: str
    """Its class."""
    numbers: int
    """In its weights."""
    numbers_in_codes: int
    """How many of them are stored as codes."""
    bytes_bf16: int
    bytes: int
    """What is not in codes counts in bfloat16."""
    weight_error: float
    """Relative L2 error of the weights in codes."""
    left: Sequence[str] = field(default_factory=list)
    """Modules that could not be quantized."""

    @property
    def ratio(self) -> float:
        """How many times smaller."""
        return self.bytes_bf16 / max(1, self.bytes)


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """How far off an argument is that the denoiser gets from quantized text encoders, on held-out captions."""

    argument: str
    relative_error: float
    """L2, over all captions."""
    cosine: float
    """Mean of the cosines of its vectors, one a token or one a caption."""
    least_cosine: float
    vectors: int


@dataclass(frozen=True, kw_only=True)
class TextEncoders:
    """Quantized text encoders: sizes, and what they cost alone, with the full-precision denoiser."""

    bits: int
    """Of layers in blocks; what is outside them has 8."""
    encoders: Sequence[TextEncoder]
    not_quantized: Mapping[str, str]
    """Text encoders that stay as they are, and why."""
    embeddings: Sequence[Embedding]
    pictures: int
    psnr: Mean
    """Of the pictures drawn with them and the full-precision denoiser, dB."""
    latent_error: Mean
    """Relative L2 error of the final latents of these."""

    @property
    def bytes_bf16(self) -> int:
        return sum(encoder.bytes_bf16 for encoder in self.encoders)

    @property
    def bytes(self) -> int:
        return sum(encoder.bytes for encoder in self.encoders)

    @property
    def ratio(self) -> float:
        """How many times smaller all of them are."""
        return self.bytes_bf16 / max(1, self.bytes)

    def line(self) -> str:
        """What they save and cost, in one line."""
        worst = max((one.relative_error for one in self.embeddings), default=0.0)
        names = ", ".join(encoder.name for encoder in self.encoders)
        return (
            f"text encoders: {names} at {self.bits} bits, {resized(self.ratio, ' times')}; embeddings are "
            f"{100 * worst:.2g} % off at most; with the full-precision transformer {self.psnr.mean:.1f} dB"
        )


@dataclass(frozen=True, kw_only=True)
class SearchCost:
    """The result of the search, and its cost in full-precision trajectories of the same captions."""

    fp_trajectories_by_calls: float
    fp_trajectories_by_seconds: float
    front: int
    """Policies on the Pareto front."""
    rollout_error: float | None
    """Error of the chosen policy's rollout."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a reader of the numbers should know: layers that are not quantized, fallbacks, memory."""

    sensitivity: str
    """What the sensitivities are effects on: "trajectory", "step", or "step, because ..."."""
    layers_not_called: Sequence[str]
    layers_called_repeatedly_and_left_alone: Sequence[str]
    left_alone: Sequence[Mapping[str, object]]
    weight_only_layers: Sequence[str]
    memory: Mapping[str, object]
    """By stage: how the model fits on the device."""
    damping_raised: Mapping[str, float]
    """By layer, where the solver needed more damping than configured."""
    micro_batch: Mapping[str, Mapping[str, int]]
    """By stage: how many units had their batches halved, by "from -> to"."""
    placement: Mapping[str, object]
    """By stage: workers to a GPU."""
    smoothing: Mapping[str, int]
    """How many layers have each kind of smoothing."""
    groups_fitted: Mapping[str, int]
    """By layer, where the weight group differs from the recipe's."""
    worst_layer_error: tuple[float, str]
    shifted: Mapping[str, int] = field(default_factory=dict)
    """By layer whose input is shifted: into how many groups of timesteps."""
    main_memory: Mapping[str, int] = field(default_factory=dict)
    """By stage: most bytes of main memory that a worker's process held, mapped files included."""
    disk: Mapping[str, int] = field(default_factory=dict)
    """By stage: bytes of its units' files. CAST_WEIGHTS: of the weights that workers shared until the run ended."""
    captions: str = ""
    """Where the held-out captions come from, and how many there are of each kind."""
    report: Mapping[str, str] = field(default_factory=dict)
    """By part of the report that could not be made as it is meant: why."""

    def space(self) -> str:
        """The most that the run took of disk and main memory, in a line; "" where it is not known."""
        parts = []
        if self.disk:
            most = max(self.disk, key=lambda stage: self.disk[stage])
            parts.append(
                f"{sum(self.disk.values()) / 1e9:.2f} GB on disk, {self.disk[most] / 1e9:.2f} of it for {most}"
            )
        if self.main_memory:
            most = max(self.main_memory, key=lambda stage: self.main_memory[stage])
            parts.append(f"a worker held {self.main_memory[most] / 1e9:.2f} GB of main memory at most, in {most}")
        return "; ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A finished run in numbers."""

    title: str
    fingerprint: str
    """Of the evaluate stage."""
    model: str
    """Folder of the full-precision pipeline."""
    quality: Quality
    bits: Bits
    size: Size
    search: SearchCost
    facts: Facts
    capture_over_bare_forwards: float
    """Worker seconds of the capture over those of its bare forwards."""
    seconds: Mapping[str, Mapping[str, float]]
    """By stage: `wall` over all tries, and the workers' `model`, `algebra` and `overhead`."""
    text_encoders: TextEncoders | None = None
    """Quantized text encoders; None where they stay as they are."""
    additions: str = ""
    """Digest of what the report shows besides the evaluation: the kinds of captions, and optional metrics. "" without
    them."""


def read_summary(report: Path) -> Summary:
    """The summary in a run directory's `report` folder. Raises FileNotFoundError, or ValueError for another layout."""
    return TypeAdapter(Summary).validate_json((report / FILE).read_bytes())
