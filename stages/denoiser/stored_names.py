"""Whether a model's files hold its tensors: neither fewer, nor others that change what they mean.

`from_pretrained` warns of such files and goes on. What was computed from them would not load in the end, or be of
another model than the files'.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import nn

from adatsq_pipe.stages.architecture.layers import quantizable_linears
from adatsq_pipe.stages.base.errors import NotTaken
from adatsq_pipe.storage.checkpoint import tensor_names
from adatsq_pipe.storage.model_index import component_config


def ignored(model: nn.Module, names: Collection[str]) -> set[str]:
    """Those of `names` that are no tensors of the model, and that its class does not expect in files either."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []
    return {n for n in set(names) - set(model.state_dict()) if not any(re.search(pattern, n) for pattern in patterns)}


def check_names(folder: Path, parts: Mapping[str, nn.Module]) -> None:
    """Raise NotTaken unless the denoisers' files in `folder` hold every tensor of the loaded `parts`, and beside a
    layer's weight nothing that it is to be multiplied or added with. Denoisers that are quantized already are left."""
    for part, model in parts.items():
        if component_config(folder, part).get("quantization_config") is not None:
            continue
        stored, where = tensor_names(folder, part), folder / part
        if lacking := sorted(set(model.state_dict()) - set(stored)):
            raise NotTaken(
                f"the weights in {where} lack {len(lacking)} tensors of {type(model).__name__}, first {lacking[0]!r}; "
                "copy the model folder again, or, if its names are of an older diffusers, load and save_pretrained"
            )
        layers = tuple(f"{name}." for name in quantizable_linears(model))
        if beside := sorted(name for name in ignored(model, stored) if name.startswith(layers)):
            raise NotTaken(
                f"the weights in {where} hold {beside[0]!r} beside a layer's weight, which diffusers ignores: they are "
                "scaled, quantized or an adapter's; give plain weights, with adapters fused (fuse_lora)"
            )
