"""Inputs: the arguments of one call of a denoiser, by the names of its forward's parameters. Values do not matter."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adatsq_pipe.pipeline.estimate.geometry import Geometry, packs

Make = Callable[..., Tensor]
"""Makes a tensor of a shape, of the model's dtype on its device."""


class NoInputs(Exception):
    """No call of this class is known; the message says of which argument."""


def inputs_of(model: nn.Module, config: Mapping[str, Any], at: Geometry, captions: int, make: Make) -> dict[str, Any]:
    """Keyword arguments of one call for so many captions. Raises NoInputs for a class whose arguments are not known."""
    rows, kind = captions * at.halves, str(config.get("_class_name", ""))
    channels, text = int(config.get("in_channels") or at.latents[0]), max(at.text, 1)
    side = list(at.latents[1:])
    tokens = at.area // 4 if packs(config) else at.area
    words = _first(config, "joint_attention_dim", "cap_feat_dim", "text_dim", "text_embed_dim", "caption_channels",
                   "cross_attention_dim")  # fmt: skip
    if kind == "ZImageTransformer2DModel":
        one = [channels, *(side if len(side) == 3 else [1, *side])]
        return {
            "x": [make(*one) for _ in range(rows)],
            "t": make(rows),
            "cap_feats": [make(text, words) for _ in range(rows)],
            "return_dict": False,
        }
    flat = packs(config) or kind == "LTXVideoTransformer3DModel"
    sample = [rows, tokens, channels] if flat else [rows, channels, *side]
    if kind == "CogVideoXTransformer3DModel":
        sample = [rows, side[0], channels, *side[1:]]
    known: dict[str, Callable[[], Any]] = {
        "hidden_states": lambda: make(*sample),
        "encoder_hidden_states": lambda: make(rows, text, words),
        "pooled_projections": lambda: make(rows, int(config.get("pooled_projection_dim") or 768)),
        "timestep": lambda: make(rows).float() if kind != "DiTTransformer2DModel" else make(rows).long(),
        "class_labels": lambda: make(rows).long(),
        "img_ids": lambda: make(tokens, 3),
        "txt_ids": lambda: make(text, 3),
        "encoder_hidden_states_mask": lambda: None,
        "encoder_attention_mask": lambda: make(rows, text),
        "img_shapes": lambda: [[(1, *(n // 2 for n in side[-2:]))]] * rows,
        "guidance": lambda: make(rows).float() if config.get("guidance_embeds") else None,
        "added_cond_kwargs": lambda: {"resolution": None, "aspect_ratio": None},
        "num_frames": lambda: side[0] if len(side) == 3 else 1,
        "height": lambda: side[-2],
        "width": lambda: side[-1],
        "return_dict": lambda: False,
    }
    taken = inspect.signature(model.forward).parameters
    lacking = [n for n, p in taken.items() if p.default is inspect.Parameter.empty and n not in known]
    if lacking or "hidden_states" not in taken:
        raise NoInputs(", ".join(lacking) or "hidden_states")
    skip = {"encoder_attention_mask"} if kind in ("PixArtTransformer2DModel", "SanaTransformer2DModel") else set()
    asked = {name: known[name]() for name in taken if name in known and name not in skip}
    return {name: value for name, value in asked.items() if value is not None}


def _first(config: Mapping[str, Any], *keys: str) -> int:
    """The first of the config's keys that is a number."""
    return next((int(config[key]) for key in keys if isinstance(config.get(key), int)), 1)


def meta_tensors(dtype: torch.dtype) -> Make:
    """Tensors without memory."""
    return lambda *shape: torch.empty(shape, dtype=dtype, device="meta")


def random_tensors(dtype: torch.dtype, device: str) -> Make:
    """Small seeded random numbers."""
    random = torch.Generator().manual_seed(0)
    return lambda *shape: (0.1 * torch.randn(shape, generator=random)).to(device, dtype)
