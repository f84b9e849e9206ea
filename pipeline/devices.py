"""The GPUs of a run's workers: how many there are, how they are shared out, and whether workers can have them at all.

All of it is asked before anything starts. Of this machine `stages.base.gpus` says it, of a running cluster Ray.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

from adatsq_pipe.pipeline.config import ClusterSettings, RunConfig
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.stages.base import gpus
from adatsq_pipe.stages.base.settings import ComputeSettings


def workers_gpus(cluster: ClusterSettings) -> int:
    """GPUs that workers can have: those of this machine, or of the running cluster. Raises ClusterUnreachable."""
    return gpus.visible_gpus() if _is_here(cluster) else cluster_gpus(cluster.address)


def placed(config: RunConfig) -> RunConfig:
    """The configuration with `cluster.gpus` and `cluster.gpus_per_worker` in place where they are 0 and the device is
    cuda: all visible GPUs, and a worker on each, or the share of one that `cluster.workers` leaves."""
    cluster = config.cluster
    if config.settings[ComputeSettings].device == "cpu" or cluster.executor == "inline":
        return config
    count, share = cluster.gpus, cluster.gpus_per_worker
    if cluster.address == "local" and not count:
        count = float(gpus.visible_gpus())
    if not share:
        share = 1.0
        if cluster.address == "local" and count and cluster.workers > count:
            share = int(10_000 * count / cluster.workers) / 10_000
    cluster = cluster.model_copy(update={"gpus": count, "gpus_per_worker": share})
    return replace(config, cluster=cluster, settings=config.settings.replaced(cluster))


def check_device(config: RunConfig) -> None:
    """Raise ConfigError if workers cannot have the device that the settings name, on this machine or on the cluster.

    Raises ClusterUnreachable if the cluster does not answer.
    """
    device, cluster = config.settings[ComputeSettings].device, config.cluster
    if device == "cpu":
        return
    inline = cluster.executor == "inline"
    share = 1.0 if cluster.gpus_per_worker == "auto" else cluster.gpus_per_worker
    number = int(device.partition(":")[2] or 0)
    if not inline and number >= math.ceil(share or 1.0):
        raise ConfigError(
            f"compute.device = {device}: a worker sees only the {math.ceil(share or 1.0)} of its own "
            "(cluster.gpus_per_worker), counted from 0; set compute.device=cuda"
        )
    asked, instead = f"compute.device = {device}", "set compute.device=cpu"
    if config.basis.keeps_device:
        asked = f"this run began on {device} and stays there"
        instead = "set compute.device=cpu, which starts its stages again"
    if not _is_here(cluster):
        if not cluster.workers and not workers_gpus(cluster):
            raise ConfigError(
                f"{asked}, but the cluster at {cluster.address!r} has no GPU; {instead}, or start nodes with GPUs "
                "(cluster.workers = N waits for those that an autoscaler brings)"
            )
        return
    check_here(device, asked, instead)
    if not inline:
        last = max(math.ceil(cluster.gpus), 1) - 1
        check_here(f"cuda:{last}", f"cluster.gpus = {cluster.gpus:g} needs cuda:{last}", "set fewer")


def check_here(device: str, asked: str = "", instead: str = "set compute.device=cpu") -> None:
    """Raise ConfigError if this machine has no such device. The message begins with `asked`, and says what to do."""
    if device == "cpu":
        return
    from adatsq_pipe.stages.denoiser.device import unavailable  # imports torch, which a run on a CPU need not here

    if why := unavailable(device):
        raise ConfigError(f"{asked or f'compute.device = {device}'}, but {why}; {instead}, or run where there is one")


def line(config: RunConfig) -> str:
    """What a run says before it computes, where it is more than that it computes on a CPU for want of a GPU."""
    compute, cluster, basis = config.settings[ComputeSettings], config.cluster, config.basis
    if compute.device != "cpu":
        said = f"computes on {compute.device} in {compute.dtype}"
        reasons = [reason for reason in (basis.device, basis.dtype) if reason]
        said += f" ({'; '.join(dict.fromkeys(reasons))})" if reasons else ""
        if cluster.executor == "inline":
            return said
        shared = cluster.gpus_per_worker
        each = "as many workers to a GPU as fit" if shared == "auto" else f"{shared:g} GPU{'s' * (shared > 1)} a worker"
        return f"{said}, {each}"
    if basis.keeps_device and _is_here(cluster) and gpus.visible_gpus():
        return (
            "this run began on a CPU and stays there, though there is a GPU; "
            "--set compute.device=cuda starts its stages again on it"
        )
    return ""


def _is_here(cluster: ClusterSettings) -> bool:
    """Whether workers run on this machine."""
    return cluster.executor == "inline" or cluster.address == "local"


@cache
def cluster_gpus(address: str) -> int:
    """GPUs of the running cluster; asked once. Raises ClusterUnreachable."""
    from adatsq_pipe.cluster.ray_executor import gpus_of  # imports Ray, of which a run on this machine asks nothing

    return gpus_of(address)
