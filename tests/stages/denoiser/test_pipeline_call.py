"""Calls of pipelines: what they decode in pieces, what they lack, and the loops that no policy can follow."""

from __future__ import annotations

import copy
import gc
import importlib.util
import inspect
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.denoiser.pipeline_call import (
    advice,
    cache_prompt_encoding,
    check_timesteps,
    describe,
    join_latents,
    missing_package,
    on_scheduler_step,
    pictures_of,
)


def test_latents_that_are_decoded_in_pieces_are_put_join_latents() -> None:
    whole = torch.randn(4, 3, 6, 2, 2)
    assert torch.equal(join_latents([whole], 4), whole)
    assert torch.equal(join_latents(list(whole.split(1)), 4), whole)
    assert torch.equal(join_latents(list(whole.split(2)), 4), whole)
    assert torch.equal(join_latents(list(whole.split([4, 2], 2)), 4), whole)
    with pytest.raises(StageError, match="several shapes"):
        join_latents([torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 8, 4)], 2)


def test_the_frames_of_a_lone_clip_are_one_sample() -> None:
    assert pictures_of({"video": torch.zeros(5, 8, 8, 3)}, 1).shape == (1, 5, 8, 8, 3)
    assert pictures_of({"images": torch.zeros(5, 8, 8, 3)}, 5).shape == (5, 8, 8, 3)
    assert pictures_of({"images": torch.zeros(1, 8, 8, 3)}, 1).shape == (1, 8, 8, 3)


def test_a_loop_that_goes_back_to_noise_is_refused() -> None:
    check_timesteps([9, 9, 5, 1])
    with pytest.raises(StageError, match=r"up and down over a run \(9, 5, 9, 5\)"):
        check_timesteps([9, 5, 9, 5])


class Encoder:
    """A pipeline that counts what it encodes."""

    def __init__(self) -> None:
        self.encoded: list[object] = []

    def encode_prompt(self, prompt: object, *, twice: bool = False) -> object:
        self.encoded.append(prompt)
        return [prompt] * (1 + twice)


def test_a_plain_prompt_is_encoded_once_and_the_arguments_stay_known() -> None:
    pipe, before = Encoder(), inspect.signature(Encoder().encode_prompt)
    cache_prompt_encoding(pipe)
    assert (
        pipe.encode_prompt("a") == pipe.encode_prompt("a") == ["a"] and pipe.encode_prompt("a", twice=True) == ["a"] * 2
    )
    tensor = torch.ones(1)
    assert pipe.encode_prompt(tensor) == pipe.encode_prompt(tensor)
    assert pipe.encoded == ["a", "a", tensor, tensor]
    assert inspect.signature(pipe.encode_prompt) == before
    cache_prompt_encoding(pipe)
    assert pipe.encode_prompt("b") == pipe.encode_prompt("b") == ["b"] and pipe.encoded[-2:] == [tensor, "b"]


def test_a_pipeline_that_is_let_go_of_is_gone_at_once() -> None:
    """Else its weights stay beside those of the next one until the collector of cycles runs."""
    pipe = Encoder()
    cache_prompt_encoding(pipe)
    pipe.encode_prompt("a")
    seen = weakref.ref(pipe)
    gc.disable()
    try:
        del pipe
        assert seen() is None
    finally:
        gc.enable()


def _pipeline(folder: Path, source: str) -> Any:
    path = folder / "some_pipeline.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("some_pipeline", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["some_pipeline"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Pipeline()


def test_a_package_that_a_pipeline_imports_only_if_it_is_there_is_named(tmp_path: Path) -> None:
    guarded = "if False:\n    import absent\n\n\nclass Pipeline:\n    def __call__(self):\n        absent.fix()\n"
    pipeline = _pipeline(tmp_path, guarded)
    with pytest.raises(NameError) as caught:
        pipeline()
    assert missing_package(caught.value, pipeline) == "absent"
    assert advice(caught.value, pipeline, 1).endswith("pip install absent")
    mistaken = _pipeline(tmp_path, guarded.replace("import absent", "import another"))
    assert missing_package(caught.value, mistaken) == "" and "model.call" in advice(caught.value, mistaken, 2)


def test_the_callback_runs_for_steps_of_copies_too() -> None:
    class Scheduler:
        """Moves on, and says by how much."""

        def step(self, by: int) -> int:
            return by

    class Derived(Scheduler):
        """Has the step of its base."""

    heard, scheduler = list[int](), Derived()
    with on_scheduler_step(Scheduler(), lambda: heard.append(0)):
        pass
    with on_scheduler_step(scheduler, lambda: heard.append(1)):
        assert scheduler.step(2) == copy.deepcopy(scheduler).step(2) == 2
        assert type(scheduler) is Derived and list(inspect.signature(scheduler.step).parameters) == ["by"]
    assert scheduler.step(3) == 3 and len(heard) == 2 and Derived.step is Scheduler.step


def test_arguments_are_described_without_their_pictures() -> None:
    text = describe(
        {"prompt": "x", "generator": 1, "image": Image.new("RGB", (4, 3)), "images": [Image.new("RGB", (4, 3))]}
    )
    assert text == "prompt='x', image=a picture of 4 x 3, images=1 pictures"
