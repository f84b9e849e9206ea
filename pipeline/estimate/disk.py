"""Disk: bytes that every stage leaves in the run directory, from the shapes and dtypes of what its units store."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
import torch

from adatsq_pipe.pipeline.estimate.outlook import Outlook
from adatsq_pipe.stages.allocation.trellis import SearchSettings, widths_of
from adatsq_pipe.stages.base.settings import ModelSettings
from adatsq_pipe.stages.base.survey import LayerInfo
from adatsq_pipe.stages.calibration.effects import WIDTHS, FisherSettings
from adatsq_pipe.stages.calibration.survey import CaptureSettings
from adatsq_pipe.stages.evaluation.reference_worker import TRUE_SCENES
from adatsq_pipe.stages.methods._layer import spec_of
from adatsq_pipe.stages.methods._recipe import Recipe
from adatsq_pipe.stages.numerics.symmetric import half_size
from adatsq_pipe.stages.runtime.spec import LayerSpec
from adatsq_pipe.stages.scenes.world import scorer

FLOAT, DOUBLE, BYTE = 4, 8, 1
ARRAY = 900
"""Bytes of a Zarr array besides its numbers: its zarr.json, and its line in the unit's marker."""
UNIT = 1_000
"""Bytes of a unit besides its arrays: its marker, its group's zarr.json."""
SURVEY = 300
"""Bytes of a layer's row in the survey, and of what is said of modules that are left."""
PACKED = 0.2
"""Parquet's bytes of a policy's bits over those of one byte a number, measured on the built-in models."""


def disk_of(outlook: Outlook, units: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Bytes by stage."""
    found = {
        "capture": _capture(outlook),
        "fisher": _fisher(outlook, sum(units["fisher"])),
        "hessian": _hessian(outlook),
        "solve": sum(_solved(outlook.recipe, row, outlook.geometry.steps) for row in outlook.survey.layers),
        "search": _search(outlook),
        "assemble": assembled_of(outlook),
        "reference": _reference(outlook),
        "evaluate": _evaluate(outlook),
    }
    overhead = {name: UNIT * sum(units[name]) for name in found}
    return {name: int(size + overhead[name]) for name, size in found.items()}


def _capture(outlook: Outlook) -> float:
    """Outputs and final latents of every run, and sampled rows and peaks of every owned input at every call."""
    survey, geometry, settings = outlook.survey, outlook.geometry, outlook.settings[CaptureSettings]
    recorded, sampled, arrays = 0.0, 0.0, 0
    per_call = max(1, settings.rows // max(1, geometry.calls_per_step))
    blocks = math.ceil(geometry.steps / settings.block)
    for part, one in outlook.denoising.items():
        share = [captions / one.captions for captions in outlook.batches]
        recorded += outlook.calls_of(part) * one.output * sum(share)
        for row in (row for row in one.survey.layers if row.owns_input):
            rows = sum(min(per_call, round(one.rows[row.name] * of)) for of in share)
            sampled += outlook.calls_of(part) * row.in_features * outlook.size * (rows + len(share))
            arrays += 2 * blocks * len(share)
    latents = outlook.captions * outlook.size * math.prod(geometry.latents)
    members = 100 * arrays  # a name with its place, and the chunk's line in the marker
    return float(recorded + latents + sampled + members + SURVEY * len(survey.layers))


def _fisher(outlook: Outlook, units: int) -> float:
    """Effects of every layer at every step, by width; or a score."""
    places = outlook.geometry.steps * len(outlook.survey.layers)
    if outlook.recipe.sensitivity == "trajectory":
        draws = outlook.settings[FisherSettings].draws
        return outlook.captions * draws * (FLOAT * places * (len(WIDTHS) + 1) + DOUBLE) + 3 * ARRAY * units
    curvature = sum(row.out_features for row in outlook.survey.layers) if outlook.recipe.time_search else 0
    return len(outlook.batches) * (DOUBLE * places + FLOAT * outlook.geometry.steps * curvature) + ARRAY * units


def _hessian(outlook: Outlook) -> float:
    """The halves of the Gram matrices of every input."""
    widths = {row.name: row.in_features for row in outlook.survey.layers}
    return sum(count * (FLOAT * half_size(widths[owner]) + ARRAY) for owner, count in outlook.grams.items())


def _solved(recipe: Recipe, row: LayerInfo, steps: int) -> int:
    """A solved layer: the tensors of its stored form, of which the codes are not packed yet and the policy lacks."""
    shapes = spec_of(recipe, row).tensors(row.in_features, row.out_features, steps)
    sizes = {name: math.prod(shape) * _item(dtype) for name, (shape, dtype) in shapes.items() if name != "policy"}
    sizes["codes"] = BYTE * row.size
    return sum(sizes.values()) + ARRAY * len(sizes)


def _item(dtype: torch.dtype) -> int:
    return torch.empty((), dtype=dtype).element_size()


def _search(outlook: Outlook) -> float:
    """The policy as JSON, and the front: a policy for every tenth of a bit of a lagrangian allocation."""
    survey, settings = outlook.survey, outlook.settings[SearchSettings]
    places = outlook.geometry.steps * sum(row.rounded for row in survey.layers)
    policy = 7 * outlook.geometry.steps * len(survey.layers)  # a number, a comma, a line's indent
    if outlook.recipe.allocation != "lagrangian":
        return policy
    widths = widths_of(settings, "lagrangian")
    return policy + PACKED * places * (10 * (widths[-1] - widths[0]) + 1)


def quantized_layers(outlook: Outlook, part: str) -> int:
    """Bytes of the packed layers of a denoiser in its file, at the recipe's mean bits."""
    recipe, steps = outlook.recipe, outlook.geometry.steps
    total = 0.0
    for row in outlook.denoising[part].survey.layers:
        spec = spec_of(recipe, row)
        for name, (shape, dtype) in spec.tensors(row.in_features, row.out_features, steps).items():
            of_budget = recipe.weight_budget / spec.weight_bits if recipe.weight_budget and row.rounded else 1.0
            total += math.prod(shape) * _item(dtype) * (of_budget if name == "codes" else 1.0)
    return int(total)


def denoiser_bytes(outlook: Outlook, part: str) -> int:
    """Bytes of a denoiser's file in the assembled folder: packed layers, and the rest as the source stores it."""
    one, subject = outlook.denoising[part], outlook.subject
    inside = sum(row.size for row in one.survey.layers)
    stored = subject.stored.get(part)
    each = stored / one.parameters if stored else outlook.size
    rest = (one.parameters - inside) * each
    names = 90 * 4 * len(one.survey.layers)  # the header's lines
    specs = sum(len(json.dumps(_plain(spec_of(outlook.recipe, row)))) + 80 for row in one.survey.layers)
    return int(quantized_layers(outlook, part) + rest + names + 2 * specs)


def _plain(spec: LayerSpec) -> dict[str, bool | int | str]:
    return spec.plain()


def assembled_of(outlook: Outlook) -> int:
    """Bytes of the assembled folder: its denoisers, and the copies of everything else."""
    return outlook.subject.copied + sum(denoiser_bytes(outlook, part) for part in outlook.denoising)


def _reference(outlook: Outlook) -> float:
    """Latents before every step and at the end, and pictures, float32; features of true scenes."""
    geometry, pictures = outlook.geometry, sum(outlook.draws)
    samples = 0.0
    for part, one in outlook.denoising.items():
        samples += outlook.steps_of(part) * one.sample / one.captions * pictures
    latents = outlook.size * pictures * math.prod(geometry.latents)
    drawn = FLOAT * geometry.pixels * pictures
    return samples + latents + drawn + _features(outlook, TRUE_SCENES) + 3 * ARRAY * len(outlook.draws)


def _features(outlook: Outlook, pictures: int) -> int:
    """Bytes of pictures' features, where a program can score them."""
    if not outlook.settings[ModelSettings].world:
        return 0
    geometry = outlook.geometry
    frames = (geometry.frames,) if geometry.frames else ()
    blank = np.zeros((1, *frames, geometry.height, geometry.width, 3), np.float32)
    return int(pictures * scorer.features(blank).shape[1] * FLOAT)


def _evaluate(outlook: Outlook) -> float:
    """Pictures, features of both models' pictures, and two small tables a batch."""
    pictures, batches = sum(outlook.draws), len(outlook.draws)
    tables = batches * (9_000 + 40 * outlook.geometry.steps) + 60 * pictures
    return FLOAT * outlook.geometry.pixels * pictures + 2 * _features(outlook, pictures) + tables + 3 * ARRAY * batches
