"""What a quantized model cannot do, refused before anything changes, with what to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from torch import nn

from adatsq_pipe.stages.runtime.model import quantized_layers

_PROJECTIONS = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")


def refuse_disk(device_map: object) -> None:
    """Raise ValueError for a device map with parts on disk: accelerate reads parameters from there, and codes are
    buffers."""
    if isinstance(device_map, Mapping) and "disk" in device_map.values():
        raise ValueError(
            "device_map puts parts of the model on disk, from where quantized layers are not read: put them on 'cpu', "
            "or load without device_map and call enable_group_offload(..., offload_to_disk_path=FOLDER) on the model"
        )


def refuse_fused_projections(model: nn.Module) -> None:
    """Let `model.fuse_qkv_projections` raise ValueError if what it fuses is quantized."""
    names = {name.rpartition(".")[2] for name in quantized_layers(model)}
    if hasattr(model, "fuse_qkv_projections") and not names.isdisjoint(_PROJECTIONS):
        model.fuse_qkv_projections = _no_fusing  # type: ignore[assignment]


def _no_fusing() -> NoReturn:
    raise ValueError(
        "quantized query, key and value layers are not fused into one, and already round their input once for all; "
        "leave fuse_qkv_projections out, or call dequantize() on the transformer first"
    )
