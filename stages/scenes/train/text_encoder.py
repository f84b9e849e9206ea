"""The text encoders learn to read before anything is drawn, and are frozen then, as in the pipelines they stand for.

Each word's state must tell which thing it belongs to, that thing's colour and shape, its place relative to the other
thing, and how many there are; the pooled state must tell all of that for both things. Linear heads ask for it and are
thrown away.
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


class _Questioned(nn.Module):
    """Linear heads over the state of each word, and over one state that stands for the whole caption."""

    backward_only: bool = False
    """Whether a word's state knows only what came before it; then it is asked where a thing's words end."""

    def _add_heads(self) -> None:
        self.of_word = nn.ModuleDict({k: nn.Linear(components.TEXT_WIDTH, n) for k, n in _SIZES.items()})
        self.of_all = nn.ModuleDict(
            {f"{k}{i}": nn.Linear(components.TEXT_WIDTH, n + 1) for k, n in _SIZES.items() for i in range(2)}
        )

    def states(self, ids_BT: Tensor) -> Tensor:
        """What the denoiser is given of every token, `[B, T, TEXT_WIDTH]`."""
        raise NotImplementedError

    def pooled(self, ids_BT: Tensor, states_BTC: Tensor) -> Tensor:
        """The state that stands for the caption, `[B, TEXT_WIDTH]`."""
        raise NotImplementedError

    def answers(self, ids_BT: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logits of the heads over words `[B, T, n]` and over the whole caption `[B, n + 1]`."""
        states = self.states(ids_BT)
        pooled = self.pooled(ids_BT, states)
        return {k: head(states) for k, head in self.of_word.items()}, {k: h(pooled) for k, h in self.of_all.items()}


class Reader(_Questioned):
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


class CausalReader(_Questioned):
    """Z-Image's encoder: a causal language model, of which the last layer but one is used."""

    backward_only = True

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


def facts(request: Request) -> list[dict[str, int]]:
    """What a reader must know of each thing asked for."""
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


def questions(
    wanted: list[Request], length: int, *, ends_only: bool = False
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Token ids `[B, length]` and the right answers for words `[B, length]` and for the whole caption `[B]`.

    `ends_only` asks no word but the last of those that speak of a thing.
    """
    words = components.tokenizer()
    ids = torch.tensor(words([r.caption for r in wanted], padding="max_length", max_length=length).input_ids)
    of_word = {k: torch.full(ids.shape, _ABSENT) for k in _SIZES}
    of_all = {f"{k}{i}": torch.full((len(wanted),), n) for k, n in _SIZES.items() for i in range(2)}
    for row, request in enumerate(wanted):
        known = facts(request)
        spoken = request.caption.split()
        turn = len(spoken) if len(known) == 1 else len(spoken) - len(["a", *" ".join(request.things[1]).split()])
        spans = [range(turn), range(turn, len(spoken))]
        for k in _SIZES:
            for thing, span in zip(known, spans, strict=False):
                of_word[k][row, list(span[-1:] if ends_only else span)] = thing[k]
            for i, thing in enumerate(known):
                of_all[f"{k}{i}"][row] = thing[k]
    return ids, of_word, of_all


def loss(reader: _Questioned, seed: tuple[int, ...], size: int, length: int) -> Tensor:
    """Mean cross-entropy of all heads on a seeded batch of training captions."""
    rng = np.random.default_rng(list(seed))
    wanted = [draw_request(rng, split="train") for _ in range(size)]
    ids, of_word, of_all = questions(wanted, length, ends_only=reader.backward_only)
    of_word, of_all = ({k: v.to(DEVICE) for k, v in right.items()} for right in (of_word, of_all))
    word_logits, all_logits = reader.answers(ids.to(DEVICE))
    parts = [F.cross_entropy(word_logits[k].flatten(0, 1), of_word[k].flatten(), ignore_index=_ABSENT) for k in of_word]
    parts += [F.cross_entropy(all_logits[k], of_all[k]) for k in of_all]
    return torch.stack(parts).mean()


def lengthen(reader: Reader, work: Path, *, steps: int, seed: int, longest: int) -> Reader:
    """The reader with a T5 that gives the same states however far a caption is padded, up to `longest` tokens.

    Its states at TEXT_LENGTH, which the denoiser has learned, are the target for those words at `longest`, and stay.
    """
    reader = reader.to(DEVICE)
    learner, short = copy.deepcopy(reader.text_encoder_2).requires_grad_(True).train(), components.TEXT_LENGTH
    words = components.tokenizer()

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 6, step])
        spoken = [draw_request(rng, split="train").caption for _ in range(16)]
        ids = torch.tensor(words(spoken, padding="max_length", max_length=longest).input_ids).to(DEVICE)
        with torch.no_grad():
            wanted_short = reader.text_encoder_2(ids[:, :short])[0]
            wanted_long = torch.cat([wanted_short, reader.text_encoder_2(ids)[0][:, short:]], 1)
        long, again = learner(ids)[0] - wanted_long, learner(ids[:, :short])[0] - wanted_short
        error: Tensor = long[:, :short].square().mean() + long[:, short:].square().mean() + again.square().mean()
        return error

    smooth = train_part("reader_long", learner, loss, steps=steps, rate=1e-3, work=work, average=0.98, decay=0.0)
    longer = copy.deepcopy(reader).cpu()
    longer.text_encoder_2 = smooth
    return longer


@torch.no_grad()
def accuracy(reader: _Questioned, wanted: list[Request], length: int) -> tuple[float, float]:
    """Share of `wanted` of which every word's, and every whole caption's, question is answered right."""
    ids, of_word, of_all = questions(wanted, length, ends_only=reader.backward_only)
    word_logits, all_logits = reader.cpu().answers(ids)
    words = torch.stack([((word_logits[k].argmax(-1) == of_word[k]) | (of_word[k] == _ABSENT)).all(1) for k in of_word])
    pooled = torch.stack([all_logits[k].argmax(-1) == of_all[k] for k in of_all])
    return words.all(0).float().mean().item(), pooled.all(0).float().mean().item()
