"""Effects in units of each caption's own error, against sums written out."""

from __future__ import annotations

import math

import numpy as np

from adatsq_pipe.stages.calibration.effects import WIDTHS, Effects


def test_captions_are_put_in_units_of_all_their_roundings_to_four_bits_and_of_all_their_weights() -> None:
    random = np.random.default_rng(3)
    activations, weights = random.normal(size=(2, 3, 4, len(WIDTHS))), random.normal(size=(2, 3, 4))
    alike = Effects(activations=activations, weights=weights, latents=np.ones(2)).alike()
    for caption in range(2):
        four = [sum(activations[caption, t, i, WIDTHS.index(4)] for t in range(3)) for i in range(4)]
        np.testing.assert_allclose(
            alike.activations[caption], activations[caption] / math.sqrt(sum(p * p for p in four))
        )
        layers = [sum(weights[caption, t, i] for t in range(3)) for i in range(4)]
        np.testing.assert_allclose(alike.weights[caption], weights[caption] / math.sqrt(sum(p * p for p in layers)))
    assert (alike.latents == 1).all()
