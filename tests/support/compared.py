"""A finished row of `compare`, as plain values."""

from __future__ import annotations

from typing import Any


def compared(**values: Any) -> dict[str, Any]:
    """A row of rounding to nearest over two captions, with `values` instead of its own."""
    row = {
        "method": "rtn",
        "change": "{}",
        "bits": "w4a4",
        "weight_bits": 4.2,
        "activation_bits": 4.0,
        "weight_bits_over": 0.2,
        "activation_bits_over": 0.0,
        "layers_smaller": 3.8,
        "psnr": 30.0,
        "psnr_interval": 1.0,
        "psnr_median": 31.5,
        "psnr_by_caption": [29.0, 31.0],
        "ssim": 0.9,
        "ssim_interval": 0.1,
        "latent_error": 0.1,
        "latent_error_interval": 0.01,
        "latent_error_geometric": 0.0625,
        "latent_log_by_caption": [-3.0, -2.5],
        "score": 0.8,
        "score_interval": 0.1,
        "full_precision_score": 0.82,
        "full_precision_score_interval": 0.1,
        "score_difference": -0.02,
        "score_difference_interval": 0.03,
        "calibration_seconds": 12.0,
        "captions": 4,
        "seeds": 3,
        "fingerprint": "f",
    }
    return row | values
