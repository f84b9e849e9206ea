"""Calls of pipelines: what they decode in pieces, what they lack, and the loops that no policy can follow."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from adatsq_pipe.stages.base import StageError
from adatsq_pipe.stages.calling import advice, lacking, pictures_of, refuse_untellable, together


def test_latents_that_are_decoded_in_pieces_are_put_together() -> None:
    whole = torch.randn(4, 3, 6, 2, 2)
    assert torch.equal(together([whole], 4), whole)
    assert torch.equal(together(list(whole.split(1)), 4), whole)
    assert torch.equal(together(list(whole.split(2)), 4), whole)
    assert torch.equal(together(list(whole.split([4, 2], 2)), 4), whole)
    with pytest.raises(StageError, match="several shapes"):
        together([torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 8, 4)], 2)


def test_the_frames_of_a_lone_clip_are_one_sample() -> None:
    assert pictures_of({"video": torch.zeros(5, 8, 8, 3)}, 1).shape == (1, 5, 8, 8, 3)
    assert pictures_of({"images": torch.zeros(5, 8, 8, 3)}, 5).shape == (5, 8, 8, 3)
    assert pictures_of({"images": torch.zeros(1, 8, 8, 3)}, 1).shape == (1, 8, 8, 3)


def test_a_loop_that_goes_back_to_noise_is_refused() -> None:
    refuse_untellable([9, 9, 5, 1])
    with pytest.raises(StageError, match=r"up and down over a run \(9, 5, 9, 5\)"):
        refuse_untellable([9, 5, 9, 5])


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
    assert lacking(caught.value, pipeline) == "absent"
    assert advice(caught.value, pipeline, 1).endswith("pip install absent")
    mistaken = _pipeline(tmp_path, guarded.replace("import absent", "import another"))
    assert lacking(caught.value, mistaken) == "" and "model.call" in advice(caught.value, mistaken, 2)
