"""The report's plots: the policy, and the latents' PSNR over the steps."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from adatsq_pipe.pipeline.summary import Summary
from adatsq_pipe.stages.allocation.front import policy_of
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.numerics.policy import WEIGHT_ONLY


def draw(context: Context, policy_path: Path, steps_path: Path, summary: Summary) -> None:
    """Draw the policy (layers by steps) to `policy_path`, and the PSNR of latents over the steps to `steps_path`."""
    plt = pyplot()
    policy = policy_of(context)
    by_layer = [policy.of_layer(i) for i in range(policy.layers)]
    rounded = [bits for bits in by_layer if min(bits) < WEIGHT_ONLY]
    figure, axis = plt.subplots(figsize=(7, 4))
    image = axis.imshow(rounded, aspect="auto", cmap="viridis", interpolation="nearest")
    axis.set_xlabel("denoising step")
    axis.set_ylabel("layer")
    figure.colorbar(image, label="activation bits")
    figure.tight_layout()
    figure.savefig(policy_path, dpi=100)
    plt.close(figure)
    figure, axis = plt.subplots(figsize=(6, 3))
    axis.plot(summary.quality.per_step.latent_psnr_db[1:])
    axis.set_xlabel("denoising step")
    axis.set_ylabel("PSNR of latents to full precision, dB")
    figure.tight_layout()
    figure.savefig(steps_path, dpi=100)
    plt.close(figure)


def pyplot() -> ModuleType:
    """Matplotlib's pyplot, drawing to files."""
    import matplotlib  # takes a second to import; `run` with nothing to do draws nothing

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # after the backend is chosen

    module: ModuleType = plt
    return module
