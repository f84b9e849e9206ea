"""Text encoders of the built-in models: trained to understand captions before anything is drawn, then frozen.

The state of each word must hold which thing it belongs to, that thing's colour and shape, its place relative to the
other thing, and the count; the pooled state must hold all of that for both things. Linear heads read these attributes
from the states and are dropped after training.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adatsq_pipe.stages.scenes.train import components
from adatsq_pipe.stages.scenes.train.training import DEVICE, train_part
from adatsq_pipe.stages.scenes.world.captions import COLOURS, SHAPES, Request, draw_request

PLACES = ("alone", "beside", "left of", "right of", "above", "below")
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_SIZES = {"colour": len(COLOURS) + 1, "shape": len(SHAPES), "place": len(PLACES), "count": 5, "first": 2}
_ABSENT = -100
_ANY = ""


class _TextEncoder(nn.Module):
    """Linear heads over the state of each word, and over one state that stands for the whole caption."""

    causal: bool = False
    """Whether a state sees only the words before it; then only the last word of a thing is labelled."""

    def _add_heads(self) -> None:
        self.word_heads = nn.ModuleDict({k: nn.Linear(components.TEXT_WIDTH, n) for k, n in _SIZES.items()})
        self.caption_heads = nn.ModuleDict(
            {f"{k}{i}": nn.Linear(components.TEXT_WIDTH, n + 1) for k, n in _SIZES.items() for i in range(2)}
        )

    def states(self, ids_BT: Tensor) -> Tensor:
        """The denoiser's text input, `[B, T, TEXT_WIDTH]`."""
        raise NotImplementedError

    def pooled(self, ids_BT: Tensor, states_BTC: Tensor) -> Tensor:
        """One state for the whole caption, `[B, TEXT_WIDTH]`."""
        raise NotImplementedError

    def logits(self, ids_BT: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logits of the heads over words `[B, T, n]` and over the whole caption `[B, n + 1]`."""
        states = self.states(ids_BT)
        pooled = self.pooled(ids_BT, states)
        return {k: head(states) for k, head in self.word_heads.items()}, {
            k: h(pooled) for k, h in self.caption_heads.items()
        }


class FluxTextEncoder(_TextEncoder):
    """Flux's two encoders: T5 gives the words' states, CLIP the pooled one."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = components.clip_text_encoder()
        self.text_encoder_2 = components.t5_text_encoder()
        self._add_heads()

    def states(self, ids_BT: Tensor) -> Tensor:
        states: Tensor = self.text_encoder_2(ids_BT)[0]
        return states

    def pooled(self, ids_BT: Tensor, states_BTC: Tensor) -> Tensor:
        state: Tensor = self.text_encoder(ids_BT[:, : components.TEXT_LENGTH]).pooler_output
        return state


class CausalTextEncoder(_TextEncoder):
    """Z-Image's encoder: a causal language model, of which the last layer but one is used."""

    causal = True

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = components.qwen_text_encoder()
        self._add_heads()

    def states(self, ids_BT: Tensor) -> Tensor:
        seen = ids_BT != self.text_encoder.config.pad_token_id
        out = self.text_encoder(input_ids=ids_BT, attention_mask=seen, output_hidden_states=True)
        states: Tensor = out.hidden_states[-2]
        return states

    def pooled(self, ids_BT: Tensor, states_BTC: Tensor) -> Tensor:
        last = (ids_BT == self.text_encoder.config.eos_token_id).int().argmax(1)
        return states_BTC[torch.arange(len(ids_BT), device=last.device), last]


def attributes(request: Request) -> list[dict[str, int]]:
    """The attributes of each thing, as indices of their classes."""
    first = request.relation or ("alone" if len(request.things) == 1 else "beside")
    places = (first, _OPPOSITE.get(first, first))
    return [
        {
            "colour": (*COLOURS, _ANY).index(colour),
            "shape": SHAPES.index(shape),
            "place": PLACES.index(places[i]),
            "count": request.count,
            "first": int(i == 0),
        }
        for i, (colour, shape) in enumerate(request.things)
    ]


def labels(
    requests: list[Request], length: int, *, last_words_only: bool = False
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Token ids `[B, length]`, and the labels of words `[B, length]` and of whole captions `[B]`, by attribute.

    A label is -100 where a word has none. `last_words_only` labels only the last word of each thing.
    """
    words = components.tokenizer()
    ids = torch.tensor(words([r.caption for r in requests], padding="max_length", max_length=length).input_ids)
    word_labels = {k: torch.full(ids.shape, _ABSENT) for k in _SIZES}
    caption_labels = {f"{k}{i}": torch.full((len(requests),), n) for k, n in _SIZES.items() for i in range(2)}
    for row, request in enumerate(requests):
        things = attributes(request)
        caption = request.caption.split()
        turn = len(caption)
        if len(things) == 2:
            turn -= len(["a", *" ".join(request.things[1]).split()])
        spans = [range(turn), range(turn, len(caption))]
        for k in _SIZES:
            for thing, span in zip(things, spans, strict=False):
                word_labels[k][row, list(span[-1:] if last_words_only else span)] = thing[k]
            for i, thing in enumerate(things):
                caption_labels[f"{k}{i}"][row] = thing[k]
    return ids, word_labels, caption_labels


def loss(encoder: _TextEncoder, seed: tuple[int, ...], size: int, length: int) -> Tensor:
    """Mean cross-entropy of all heads on a seeded batch of training captions."""
    rng = np.random.default_rng(list(seed))
    requests = [draw_request(rng, split="train") for _ in range(size)]
    ids, word_labels, caption_labels = labels(requests, length, last_words_only=encoder.causal)
    word_labels, caption_labels = (
        {k: v.to(DEVICE) for k, v in labels_of.items()} for labels_of in (word_labels, caption_labels)
    )
    word_logits, all_logits = encoder.logits(ids.to(DEVICE))
    parts = [
        F.cross_entropy(word_logits[k].flatten(0, 1), word_labels[k].flatten(), ignore_index=_ABSENT)
        for k in word_labels
    ]
    parts += [F.cross_entropy(all_logits[k], caption_labels[k]) for k in caption_labels]
    return torch.stack(parts).mean()


def extend_length(encoder: FluxTextEncoder, work: Path, *, steps: int, seed: int, longest: int) -> FluxTextEncoder:
    """A copy of `encoder` whose T5 gives the same states for captions padded up to `longest` tokens.

    Its states at TEXT_LENGTH, which the denoiser has learned, are the target at `longest` and must not change.
    """
    encoder = encoder.to(DEVICE)
    learner, short = copy.deepcopy(encoder.text_encoder_2).requires_grad_(True).train(), components.TEXT_LENGTH
    words = components.tokenizer()

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 6, step])
        captions = [draw_request(rng, split="train").caption for _ in range(16)]
        ids = torch.tensor(words(captions, padding="max_length", max_length=longest).input_ids).to(DEVICE)
        with torch.no_grad():
            target_short = encoder.text_encoder_2(ids[:, :short])[0]
            target_long = torch.cat([target_short, encoder.text_encoder_2(ids)[0][:, short:]], 1)
        long, unchanged = learner(ids)[0] - target_long, learner(ids[:, :short])[0] - target_short
        error: Tensor = long[:, :short].square().mean() + long[:, short:].square().mean() + unchanged.square().mean()
        return error

    smooth = train_part("reader_long", learner, loss, steps=steps, rate=1e-3, work=work, average=0.98, decay=0.0)
    longer = copy.deepcopy(encoder).cpu()
    longer.text_encoder_2 = smooth
    return longer


@torch.no_grad()
def accuracy(encoder: _TextEncoder, requests: list[Request], length: int) -> tuple[float, float]:
    """Share of `requests` for which all words, and all of the whole caption, are classified correctly."""
    ids, word_labels, caption_labels = labels(requests, length, last_words_only=encoder.causal)
    word_logits, all_logits = encoder.cpu().logits(ids)
    words = torch.stack(
        [((word_logits[k].argmax(-1) == word_labels[k]) | (word_labels[k] == _ABSENT)).all(1) for k in word_labels]
    )
    pooled = torch.stack([all_logits[k].argmax(-1) == caption_labels[k] for k in caption_labels])
    return words.all(0).float().mean().item(), pooled.all(0).float().mean().item()
