"""The held-out draws that both the reference and the evaluate stage make: captions times seeds, in batches."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.run_settings import RunSettings
from adatsq_pipe.stages.base.settings import LARGEST_SEED, ComputeSettings, ModelSettings, PromptSettings
from adatsq_pipe.stages.base.units import shards
from adatsq_pipe.storage.fingerprint import Plain


class EvaluateSettings(PromptSettings):
    """[evaluate] Held-out captions on which both models are compared."""

    table: ClassVar[str] = "evaluate"

    prompts: tuple[str, ...] = ()
    """Held-out captions; empty = the built-in world's held-out combinations; for models outside that world the
    built-in stress captions, of six kinds in turn."""
    kinds: tuple[str, ...] = ()
    """What kind each caption is of, "" for none: results are shown by kind too. The file's column `kind` sets it. A
    changed kind draws nothing again."""
    inputs: tuple[dict[str, Any], ...] = ()
    """What each caption comes with, from a manifest: `images` by argument, `call`, `seed`."""
    prompts_file: str = ""
    """The same from a file: text with one caption a line, or JSON, JSONL, CSV, TSV or Parquet with a column `prompt`.
    The result depends on its contents, not on its path."""
    count: int = Field(default=16, ge=1, le=100_000)
    """How many captions are built in. Set beside captions of your own, it takes the first so many of them."""
    seeds: int = Field(default=3, ge=1, le=1_000)
    """Draws per caption, each with the same seed for both models."""
    batch: int = Field(default=6, ge=1)
    """Captions in one forward pass. Float results depend on it."""
    seed: int = Field(default=7_000, ge=0, le=LARGEST_SEED)
    """Seed of the noise of the first draw, and of the choice of built-in captions; each further draw adds 1."""
    metrics: tuple[Literal["lpips", "clip"], ...] = ()
    """Further metrics of the pictures, where their packages and weights are at hand: lpips (pip install lpips
    torchvision), and clip, the CLIP score of evaluate.clip. They draw nothing again."""
    clip: str = ""
    """For the CLIP score: the folder of a transformers CLIPModel with its processor. Scores depend on its files, not on
    its path."""

    def identity(self) -> dict[str, Plain]:
        """What the draws depend on."""
        plain = super().identity()
        del plain["metrics"], plain["clip"]
        return plain


def draws_identity(settings: RunSettings, model: str) -> dict[str, Plain]:
    """What the draws of both models depend on, besides the quantized one."""
    called = {key: settings[ModelSettings].identity()[key] for key in ("call", "world")}
    return {**settings.identity(ComputeSettings, EvaluateSettings), **called, "model": model}


def batch_count(context: Context) -> int:
    """Batches of captions times seeds."""
    settings = context.settings[EvaluateSettings]
    return len(shards(len(settings.prompts) * settings.seeds, settings.batch))


def draw_unit(batch: int) -> str:
    """The unit of the reference with the full-precision draws of a batch."""
    return f"draw/{batch:03d}"
