"""Where a smoothing can be folded offline into the layer before, so that nothing is multiplied at run time.

Inputs that are norm(x) (1 + scale) + shift take it into the modulation layer that gives scale and shift; inputs that
are an attention's output take it into the value projection (PTQ4DiT, 2405.16005, sec. 4.3). Both are exact: rows of a
weight with a scale per row are multiplied, and biases follow. Known are diffusers' AdaLayerNormZero and its single-
stream sibling; whatever else is smoothed on the fly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from diffusers.models.normalization import AdaLayerNormZero, AdaLayerNormZeroSingle
from torch import Tensor, nn

from adatsq_pipe.stages.base.survey import LayerInfo

_QKV = ("to_q", "to_k", "to_v")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")


@dataclass(frozen=True, kw_only=True)
class Fold:
    """`consumers` share an input whose channels `producer` can scale: rows `shift` and `scale` of a modulation, or,
    with no `scale`, the rows `shift` of a value projection."""

    producer: str
    consumers: tuple[str, ...]
    shift: slice
    scale: slice | None

    def rows(self, w_OI: Tensor, bias_O: Tensor | None, factor_I: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the producer, its channels multiplied by `factor_I`."""
        w, bias = w_OI.clone(), None if bias_O is None else bias_O.clone()
        for place in (self.shift, self.scale):
            if place is None:
                continue
            w[place] *= factor_I.to(w).unsqueeze(1)
            if bias is not None:
                offset = 1.0 if place is self.scale else 0.0
                bias[place] = (bias[place] + offset) * factor_I.to(bias) - offset
        return w, bias


def folds(model: nn.Module, rows: Sequence[LayerInfo]) -> list[Fold]:
    """The folds a model offers: of its layers in the survey's `rows`, all that share an input must take part."""
    found = []
    surveyed = {row.name: row for row in rows}
    for name, module in model.named_modules():
        if isinstance(module, (AdaLayerNormZero, AdaLayerNormZeroSingle)) and f"{name}.linear" in surveyed:
            found += _of_modulation(name, module)
        if name.rpartition(".")[2] in ("attn", "attn1") and f"{name}.add_v_proj" not in surveyed:
            value_layer = surveyed.get(f"{name}.to_v")
            width = value_layer.out_features if value_layer else 0
            value = Fold(producer=f"{name}.to_v", consumers=(f"{name}.to_out.0",), shift=slice(0, width), scale=None)
            found += [value] if width else []
    there = [replace(fold, consumers=tuple(name for name in fold.consumers if name in surveyed)) for fold in found]
    return [fold for fold in there if _whole(fold, surveyed)]


def _of_modulation(name: str, module: AdaLayerNormZero | AdaLayerNormZeroSingle) -> list[Fold]:
    block, _, norm = name.rpartition(".")
    width = module.linear.out_features // (3 if isinstance(module, AdaLayerNormZeroSingle) else 6)
    if module.linear.bias is None:
        return []
    if isinstance(module, AdaLayerNormZeroSingle):
        groups = [("attn.", (*_QKV,), 0), ("", ("proj_mlp",), 0)]
    elif norm.endswith("context"):
        groups = [("attn.", _ADDED, 0), ("ff_context.net.0.", ("proj",), 3)]
    else:
        groups = [("attn.", _QKV, 0), ("attn1.", _QKV, 0), ("ff.net.0.", ("proj",), 3)]
    consumers: dict[int, list[str]] = {}
    for path, names, chunk in groups:
        consumers.setdefault(chunk, []).extend(f"{block}.{path}{leaf}" for leaf in names)
    return [
        Fold(
            producer=f"{name}.linear",
            consumers=tuple(members),
            shift=slice(chunk * width, (chunk + 1) * width),
            scale=slice((chunk + 1) * width, (chunk + 2) * width),
        )
        for chunk, members in consumers.items()
    ]


def _whole(fold: Fold, surveyed: Mapping[str, LayerInfo]) -> bool:
    """Whether the consumers are exactly the layers fed this input, and as wide as the producer's part."""
    if not fold.consumers or fold.producer not in surveyed:
        return False
    source, width = surveyed[fold.consumers[0]].input_of, fold.shift.stop - fold.shift.start
    fed = {name: row for name, row in surveyed.items() if row.input_of == source}
    return set(fed) == set(fold.consumers) and all(row.in_features == width for row in fed.values())


def apply(model: nn.Module, fold: Fold, factor_I: Tensor) -> None:
    """Fold `factor_I` into a full-precision model: consumers' columns are divided, the producer's rows multiplied."""
    producer = model.get_submodule(fold.producer)
    assert isinstance(producer, nn.Linear)
    with torch.no_grad():
        weight, bias = fold.rows(producer.weight, producer.bias, factor_I)
        producer.weight.copy_(weight)
        if bias is not None:
            producer.bias.copy_(bias)
        for name in fold.consumers:
            consumer = model.get_submodule(name)
            assert isinstance(consumer, nn.Linear)
            consumer.weight.div_(factor_I.to(consumer.weight))
