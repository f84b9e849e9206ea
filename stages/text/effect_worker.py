"""The text effect stage's worker: draws with quantized text encoders and the full-precision denoiser."""

from __future__ import annotations

import inspect
import os
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from adatsq_pipe.stages.architecture.families._family import sample_name
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.micro_batch import OutOfMemoryBackoff
from adatsq_pipe.stages.base.settings import ComputeSettings
from adatsq_pipe.stages.base.units import unit_of
from adatsq_pipe.stages.denoiser.call import Call
from adatsq_pipe.stages.denoiser.conditions import Conditions
from adatsq_pipe.stages.denoiser.denoiser import Denoiser
from adatsq_pipe.stages.denoiser.loading import denoiser_of
from adatsq_pipe.stages.denoiser.outputs import leaves
from adatsq_pipe.stages.denoiser.pipeline_call import cache_prompt_encoding
from adatsq_pipe.stages.evaluation.sampling import draws, followed
from adatsq_pipe.stages.numerics.metrics import psnr, relative_error
from adatsq_pipe.stages.text.effect import ROWS
from adatsq_pipe.stages.text.packed_folder import packed_names, write_encoder
from adatsq_pipe.storage import tables, tensors
from adatsq_pipe.storage.checkpoint import find_pipeline
from adatsq_pipe.storage.fingerprint import Plain

MOST_PSNR = 100.0
"""dB of equal pictures, as evaluate has it."""


class TextEffect(OutOfMemoryBackoff):
    """The stage's worker."""

    stage: ClassVar[str] = "text_effect"

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        self.batches = draws(context)
        self._denoiser: Denoiser | None = None
        self._whole: dict[str, nn.Module] = {}
        self._packed: dict[str, nn.Module] = {}

    def __call__(self, key: str) -> None:
        place = int(key.partition("/")[2])
        conditions, wanted = self.batches[place], tensors.read(self.context.read("reference", f"draw/{place:03d}")[1])
        with unit_of(self.context, self.stage, key, self.micro) as unit:
            denoiser = self._opened()
            before = self._embeddings(denoiser, conditions, self._whole)
            after = self._embeddings(denoiser, conditions, self._packed)
            states, pictures = followed(denoiser, conditions, unit)
            rows: list[tables.Row] = [
                {
                    "prompt": prompt,
                    "seed": seed,
                    "latent_error": relative_error(latents, wanted["latents"][i]),
                    "psnr": min(psnr(pictures[i], wanted["pictures"][i], peak=1.0), MOST_PSNR),
                }
                for i, (prompt, seed, latents) in enumerate(
                    zip(conditions.prompts, conditions.seeds, states[-1], strict=True)
                )
            ]
            tables.write(unit.folder / ROWS, rows)
            unit.value = {n: distance(before[n], after[n]) for n in before if differ(before[n], after[n])}

    def _opened(self) -> Denoiser:
        """The full-precision pipeline, and its quantized encoders beside it."""
        if self._denoiser is None:
            denoiser = denoiser_of(self.context, self.micro, to_change=True)
            names = packed_names(self.context)
            self._whole = {name: denoiser.pipe.components[name] for name in names}
            self._packed = {name: self._loaded(name) for name in names}
            if denoiser.offload is None:
                for module in self._packed.values():
                    module.to(denoiser.device)
            self._denoiser = denoiser
        self._denoiser.micro = self.micro
        return self._denoiser

    def _loaded(self, name: str) -> nn.Module:
        """The quantized encoder, from a folder of links to the stage's files."""
        kind: Any = getattr(transformers, find_pipeline(self.context.model.path)[name][1])
        dtype = getattr(torch, self.context.settings[ComputeSettings].dtype)
        with tempfile.TemporaryDirectory(prefix="adatsq-text-") as folder:
            write_encoder(self.context, name, Path(folder), lambda file, to: os.symlink(file.resolve(), to))
            loaded: nn.Module = kind.from_pretrained(Path(folder) / name, dtype=dtype).eval()
        return loaded

    def _embeddings(
        self, denoiser: Denoiser, conditions: Conditions, encoders: dict[str, nn.Module]
    ) -> dict[str, list[Tensor]]:
        """What the denoiser's first call gets besides its sample, by argument, with these encoders in the pipeline,
        which keeps them."""
        denoiser.pipe.register_modules(**encoders)
        vars(denoiser.pipe).pop("encode_prompt", None)  # it keeps what it has encoded
        cache_prompt_encoding(denoiser.pipe)
        call = denoiser.teleport(conditions, ())
        assert isinstance(call, Call)
        part = denoiser.parts[call.part]
        names = list(inspect.signature(part.forward).parameters)
        given = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
        sample = sample_name(part) or names[0]
        return {
            name: [leaf.float().cpu() for leaf in leaves(value) if leaf.is_floating_point() and leaf.ndim > 1]
            for name, value in given.items()
            if name != sample
        }


def differ(before: list[Tensor], after: list[Tensor]) -> bool:
    """Whether two lists of as many tensors hold other numbers: an argument that does not depend on the text stays."""
    return any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def distance(before: list[Tensor], after: list[Tensor]) -> dict[str, Plain]:
    """Sums from which the relative error and the cosines of vectors (last axis) follow."""
    squared_error = squared = cosines = 0.0
    least, vectors = 1.0, 0
    for a, b in zip(before, after, strict=True):
        squared_error += float((b - a).double().square().sum())
        squared += float(a.double().square().sum())
        present = a.norm(dim=-1) > 0
        cosine = cosine_similarity(a.double(), b.double(), dim=-1)[present]
        if cosine.numel():
            cosines, least = cosines + float(cosine.sum()), min(least, float(cosine.min()))
            vectors += cosine.numel()
    return {
        "squared_error": squared_error,
        "squared": squared,
        "cosines": cosines,
        "least_cosine": least,
        "vectors": vectors,
    }
