"""Signatures of attention processors, found ready."""

from __future__ import annotations

import inspect

import pytest
from torch import Tensor, nn

from adatsq_pipe.stages.denoiser.signatures import keep_signatures


class Processor:
    """As those of diffusers: no module."""

    def __call__(self, attn: nn.Module, hidden_states: Tensor, image_rotary_emb: Tensor | None = None) -> Tensor:
        return hidden_states


class Own(Processor):
    """Inherits its call."""


class Attention(nn.Module):
    """A layer with a processor of either kind."""

    def __init__(self, processor: object) -> None:
        super().__init__()
        self.processor = processor


def test_a_signature_is_what_it_was_and_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_signatures(nn.Sequential(Attention(Processor()), Attention(None), nn.Linear(1, 1)))
    monkeypatch.setattr(inspect, "_signature_from_function", None)  # what reads a function
    for processor in (Processor(), Own()):
        assert list(inspect.signature(processor.__call__).parameters) == ["attn", "hidden_states", "image_rotary_emb"]


def test_a_processor_with_weights_stays_as_it_is() -> None:
    keep_signatures(nn.Sequential(Attention(nn.Linear(1, 1))))
    assert not hasattr(nn.Module.__call__, "__signature__")
