"""The solved layers, put into a transformer."""

from __future__ import annotations

import torch
from torch import nn

from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.calibration.survey import survey_of
from adatsq_pipe.stages.numerics.policy import Policy
from adatsq_pipe.stages.runtime.linear import QuantizedLinear
from adatsq_pipe.stages.runtime.model import replace_linears
from adatsq_pipe.stages.runtime.spec import LayerSpec
from adatsq_pipe.storage import tensors


def load_solved(context: Context, transformer: nn.Module, policy: Policy) -> dict[str, QuantizedLinear]:
    """Put the solved layers into `transformer` with the activation bits of `policy`; returns them by name."""

    rows = survey_of(context).layers
    specs = {row.name: LayerSpec(**context.read("solve", f"layer/{row.name}")[0].value["spec"]) for row in rows}
    layers = replace_linears(transformer, specs, steps=policy.steps)
    for i, (name, layer) in enumerate(layers.items()):
        stored = tensors.read(context.manifest("solve").local_folder(f"layer/{name}"))
        layer.set_tensors(stored)
        layer.policy.copy_(torch.tensor(policy.of_layer(i), dtype=torch.uint8))
    return layers
