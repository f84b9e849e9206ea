"""Tiny pipelines of every family (random weights: for mechanics, never for quality), and a tiny run's options."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.run_guard import pytest_runtest_protocol  # noqa: F401  (a hook)

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Several test processes with several threads each would wait for each other."""
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
"""Asking whether there is a GPU then leaves CUDA alone, which does not survive the forks that tests are run in."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
"""A shell starts what it runs in the background deaf to Ctrl-C; tests press it on the commands that they start."""

PATIENCE = 900
"""Seconds until a test that waits for another process takes it for hung: many times what a busy machine needs."""

FAMILIES = ("flux", "z-image", "wan", "dit")

TINY = (
    "--set", "recipe.conditioning_group=0",
    "--set", "data.prompts=['a red circle', 'a blue square', 'two green crosses']",
    "--set", "data.batch=2",
    "--set", "evaluate.prompts=['a white cross']",
    "--set", "evaluate.seeds=2",
    "--set", "evaluate.batch=1",
    "--set", "capture.rows=24",
    "--set", "capture.block=2",
    "--set", "search.rollout_prompts=1",
)  # fmt: skip


FIRST = (
    "test_s3.py", "test_ray.py", "test_nodes.py", "test_submit.py", "test_main.py", "test_methods.py",
    "test_builtin_models.py", "test_run.py", "test_zoo.py", "test_batch_slices.py", "test_placement.py",
)  # fmt: skip
"""Files that take longest are handed out first, so that the processes end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a family's tiny pipeline, made on first use."""
    from tests.tiny import BUILDERS

    made: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name not in made:
            import torch

            folder = tmp_path_factory.mktemp(name) / name
            with torch.random.fork_rng():
                torch.manual_seed(0)
                pipe, call = BUILDERS[name]()
            pipe.save_pretrained(folder)
            (folder / "sampling.json").write_text(json.dumps({"call": call}))
            made[name] = folder
        return made[name]

    return build


@pytest.fixture(scope="session")
def tiny_flux(family: Callable[[str], Path]) -> Path:
    return family("flux")
