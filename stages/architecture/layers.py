"""Which layers of a denoiser are quantized, which are skipped, and why. Needs torch, not diffusers.

The rules look at structure, not at names of models: blocks are the lists of repeated modules at the denoiser's top, and
the linear layers inside them are quantized. Every other module with parameters is listed with a reason, so that the
parameters of quantized layers and skipped modules add up to the model's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from adatsq_pipe.stages.architecture.families._family import family_of
from adatsq_pipe.stages.architecture.support import CONVOLUTION, RAW, TABLE, VECTORS
from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.runtime.linear import QuantizedLinear

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_EMBEDDERS = ("embed", "proj_in", "patch", "pos_", "context", "refiner", "caption", "txt_in", "img_in")
_LAST = ("proj_out", "norm_out", "final", "head", "unpatch")


@dataclass(frozen=True, kw_only=True)
class SkippedModule:
    """A module with parameters of its own that is not quantized: its kind (class name), parameters, and the reason."""

    name: str
    kind: str
    parameters: int
    why: str


class Several(nn.Module):
    """The denoisers of a pipeline that has several, as one module, so that their layers share a namespace."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def several(parts: Mapping[str, nn.Module]) -> nn.Module:
    """The only denoiser itself, or all of them as one module."""
    return Several(parts) if len(parts) > 1 else next(iter(parts.values()))


def block_lists(transformer: nn.Module) -> dict[str, nn.Module]:
    """The lists of repeated blocks by name, or the modules that a family names instead.

    A block has at least two linear layers; a list of single projections is an embedder. Raises StageError if a family
    names modules that do not exist.
    """
    family = family_of(transformer)
    if family is not None and family.blocks:
        try:
            return {name: transformer.get_submodule(name) for name in family.blocks}
        except AttributeError as error:
            raise StageError(f"the family of {family.transformer} names blocks that do not exist: {error}") from None
    return {
        name: child
        for name, child in transformer.named_children()
        if isinstance(child, nn.ModuleList) and any(len(linears_in(block)) > 1 for block in child)
    }


def linears_in(module: nn.Module) -> list[nn.Module]:
    """All linear layers below a module, including quantized ones."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear | QuantizedLinear)]


def quantizable_linears(transformer: nn.Module) -> dict[str, nn.Linear]:
    """Linear layers inside the repeated blocks, by name. Embedders and the final layer are not among them."""
    if isinstance(transformer, Several):
        return {
            f"{part}.{name}": layer
            for part, module in transformer.named_children()
            for name, layer in quantizable_linears(module).items()
        }
    excluded = _excluded_endings(transformer)
    return {
        f"{child_name}.{name}": layer
        for child_name, child in block_lists(transformer).items()
        for name, layer in child.named_modules()
        if isinstance(layer, nn.Linear) and layer.weight.numel() and not f"{child_name}.{name}".endswith(excluded)
    }


def _excluded_endings(transformer: nn.Module) -> tuple[str, ...]:
    family = family_of(transformer)
    return family.leave if family is not None else ()


def known_to_repeat(transformer: nn.Module, layers: Iterable[str]) -> list[str]:
    """Those of the `layers` of a denoiser that its family says run more than once in a call."""
    family = family_of(transformer)
    return [name for name in layers if family is not None and name.endswith(family.repeated)]


def skipped_modules(transformer: nn.Module) -> Iterator[SkippedModule]:
    """Every module with parameters of its own that is not quantized."""
    blocks, taken = tuple(f"{name}." for name in block_lists(transformer)), quantizable_linears(transformer)
    for name, module in transformer.named_modules():
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if not own or name in taken:
            continue
        why = _inside(module) if name.startswith(blocks) else _outside(name)
        if isinstance(module, nn.Linear) and name.startswith(blocks) and name.endswith(_excluded_endings(transformer)):
            why = "left by the family"
        yield SkippedModule(name=name or "(itself)", kind=type(module).__name__, parameters=own, why=why)


def _outside(name: str) -> str:
    if any(part in name for part in _LAST):
        return "final projection, outside the repeated blocks"
    if any(part in name for part in _EMBEDDERS):
        return "embedder, outside the repeated blocks"
    return "outside the repeated blocks"


def _inside(module: nn.Module) -> str:
    if isinstance(module, _CONVOLUTIONS):
        return CONVOLUTION
    if isinstance(module, nn.Embedding):
        return TABLE
    if any(parameter.dim() > 1 and min(parameter.shape[-2:]) > 16 for parameter in module.parameters(recurse=False)):
        return RAW
    return VECTORS
