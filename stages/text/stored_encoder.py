"""What of a stored text encoder is quantized, by the names in its files.

Files may hold names of older versions of transformers, which renames them as it loads. So transformers itself is asked:
it loads numbered stand-ins, views of one number each, and the model shows which name went where.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.runtime.text_layers import Packing, packings, tied
from adatsq_pipe.storage.checkpoint import find_pipeline, stored_tensors
from adatsq_pipe.storage.weights import LazyTensor

WEIGHT = ".weight"


@dataclass(frozen=True, kw_only=True)
class StoredEncoder:
    """A text encoder's tensors as they are stored, and what becomes of them."""

    tensors: Mapping[str, LazyTensor]
    packed: Mapping[str, Packing]
    """The tensors that become codes."""
    dropped: frozenset[str]
    """Copies of other tensors, which the model shares."""
    left: tuple[str, ...]
    """Modules of the model that would be quantized and are not: their files hold them in another form."""


def model_class(kind: str) -> Any:
    """The class of that name in the installed transformers; None if it has no such model."""
    made = getattr(transformers, kind, None)
    return made if isinstance(made, type) and issubclass(made, transformers.PreTrainedModel) else None


@lru_cache(maxsize=2)
def stored_encoder(folder: Path, name: str, bits: int) -> StoredEncoder:
    """The text encoder `name` of the pipeline in `folder`. Raises StageError if its class does not make a model."""
    tensors = stored_tensors(folder, name)
    kind = find_pipeline(folder)[name][1]
    made = model_class(kind)
    if made is None:
        raise StageError(f"{folder / name}: {kind} is no model of the installed transformers; update transformers")
    try:
        with _quiet():
            config = made.config_class.from_pretrained(folder / name)
            with torch.device("meta"):
                shared = tied(made(config))
            places, _ = _places(made, config, tensors)
            copies, differing = _copies(tensors, places, shared)
            kept = {n: t for n, t in tensors.items() if n not in copies}
            places, model = _places(made, config, kept)
    except Exception as error:  # whatever a config of another version raises
        raise StageError(f"{folder / name} does not load as a {kind}: {error}") from error
    found, packed, left = packings(model, bits, differing), dict[str, Packing](), set(differing)
    by_module = {place.removesuffix(WEIGHT): stored for stored, all_of in places.items() for place in all_of}
    for module, packing in found.items():
        stored = by_module.get(module, "")
        like = tuple(model.get_parameter(module + WEIGHT).shape)
        if stored.endswith(WEIGHT) and tensors[stored].shape == like:
            packed[stored] = packing
        else:
            left.add(module)
    for target, source in shared.items():  # what is shared is left together
        if {target, source} & left:
            left |= {target, source}
            packed = {n: p for n, p in packed.items() if n not in (by_module.get(target), by_module.get(source))}
    return StoredEncoder(tensors=tensors, packed=packed, dropped=frozenset(copies), left=tuple(sorted(left)))


def _places(made: Any, config: object, tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, list[str]], nn.Module]:
    """By stored name the parameters of the model that it is loaded into, and the model, whose numbers are stand-ins."""
    names = sorted(tensors)
    stand_ins = {n: torch.tensor(float(i)).expand(tensors[n].shape) for i, n in enumerate(names, 1)}
    model: nn.Module = made.from_pretrained(None, config=config, state_dict=stand_ins, dtype=torch.float32)
    places: dict[str, list[str]] = {}
    for parameter, value in model.state_dict().items():
        if not value.numel():
            continue
        number = float(value.flatten()[0])
        if 1 <= number <= len(names) and number == int(number) and value.shape == tensors[names[int(number) - 1]].shape:
            places.setdefault(names[int(number) - 1], []).append(parameter)
    return places, model


def _copies(
    tensors: Mapping[str, LazyTensor], places: Mapping[str, list[str]], shared: Mapping[str, str]
) -> tuple[set[str], set[str]]:
    """(stored names that repeat what the model shares, modules that should share a weight and are stored apart)."""
    stored = {place: name for name, all_of in places.items() for place in all_of}
    copies, differing = set[str](), set[str]()
    for target, source in shared.items():
        pair = stored.get(target + WEIGHT), stored.get(source + WEIGHT)
        if pair[0] is None or pair[1] is None or pair[0] == pair[1]:
            continue
        if torch.equal(tensors[pair[0]].load(), tensors[pair[1]].load()):
            copies.add(pair[0])
        else:
            differing |= {target, source}
    return copies, differing


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, transformers does not report on the stand-ins."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)
