"""Whether a run's workers can have the device that the settings name, asked before anything starts."""

from __future__ import annotations

import math

from adatsq_pipe.pipeline.config import RunConfig
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.stages.base.settings import ComputeSettings


def check_device(config: RunConfig) -> None:
    """Raise ConfigError if this machine lacks the device that its workers are to use.

    The machines of a running cluster say it themselves, when their workers open the model.
    """
    device, cluster = config.settings[ComputeSettings].device, config.cluster
    if device == "cpu":
        return
    inline = cluster.executor == "inline"
    share = 1.0 if cluster.gpus_per_worker == "auto" else cluster.gpus_per_worker
    number = int(device.partition(":")[2] or 0)
    if not inline and share and number >= math.ceil(share):
        raise ConfigError(
            f"compute.device = {device}: a worker sees only the {math.ceil(share)} of its own "
            "(cluster.gpus_per_worker), counted from 0; set compute.device=cuda"
        )
    if inline or cluster.address == "local":
        check_here(device)
        if not inline:
            last = max(math.ceil(cluster.gpus), 1) - 1
            check_here(f"cuda:{last}", f"cluster.gpus = {cluster.gpus:g} needs cuda:{last}", "set fewer")


def check_here(device: str, asked: str = "", instead: str = "set compute.device=cpu") -> None:
    """Raise ConfigError if this machine has no such device. The message begins with `asked`, and says what to do."""
    from adatsq_pipe.stages.denoiser.device import unavailable  # imports torch, which a run on a CPU need not here

    if why := unavailable(device):
        raise ConfigError(f"{asked or f'compute.device = {device}'}, but {why}; {instead}, or run where there is one")
