"""Optional metrics: CLIP scores against a few lines of transformers, LPIPS through a stand-in for its package."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from adatsq_pipe.pipeline import samples
from adatsq_pipe.stages.base.errors import NotTaken, StageError
from adatsq_pipe.stages.evaluation import perceptual
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings
from adatsq_pipe.stages.evaluation.perceptual_worker import Perceptual
from adatsq_pipe.storage import tables, tensors
from tests.support.made_store import MadeStore, make_store

CAPTIONS = ["a red circle", "two blue squares, and " + "x" * 60]
SIDE = 24
pytestmark = pytest.mark.filterwarnings("ignore:.*torchvision:UserWarning")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIPModel of random weights, with a tokenizer of single letters."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer, logging

    logging.disable_progress_bar()
    folder, letters = tmp_path_factory.mktemp("clip"), "abcdefghijklmnopqrstuvwxyz,"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(words), "max_position_embeddings": 20, "bos_token_id": len(words) - 2}
    torch.manual_seed(1)
    config = CLIPConfig(
        text_config={**small, **text, "eos_token_id": len(words) - 1},
        vision_config={**small, "image_size": SIDE, "patch_size": 8}, projection_dim=8,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    pixels = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size)
    vocabulary = {word: place for place, word in enumerate(words)}
    CLIPProcessor(image_processor=pixels, tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[])).save_pretrained(folder)
    return folder


def _drawn(folder: Path, shape: tuple[int, ...], **asked: Any) -> tuple[MadeStore, list[Tensor]]:
    """Two captions, two seeds, three draws to a batch: pictures of both models, by batch one after the other."""
    store = make_store(folder, evaluate={"prompts": CAPTIONS, "seeds": 2, "batch": 3, **asked})
    store.context.fingerprints["perceptual"] = "9" * 64  # type: ignore[index]
    random, found = torch.Generator().manual_seed(1), list[Tensor]()
    for number, count in ((0, 3), (1, 1)):
        prompts = [CAPTIONS[(3 * number + i) % 2] for i in range(count)]
        for stage, unit in (("reference", "draw"), ("evaluate", "quantized")):
            place = store.manifest(stage).open_unit(f"{unit}/{number:03d}")
            found.append(torch.rand(count, *shape, generator=random))
            tensors.write(place, {"pictures": found[-1]})
            if stage == "evaluate":
                tables.write(place / "samples.parquet", [{"prompt": p, "seed": i} for i, p in enumerate(prompts)])
            store.manifest(stage).commit(f"{unit}/{number:03d}")
    return store, found


def _scores(store: MadeStore) -> list[dict[str, Any]]:
    worker = Perceptual(store.context)
    for number in (0, 1):
        worker(f"scores/{number:03d}")
    return samples.samples(store.context)


def _clip_score(folder: Path, caption: str, frame: Tensor) -> float:
    """100 cos, from the model's two towers, of a PNG's pixels."""
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    image = Image.fromarray(np.round(frame.numpy() * 255).astype(np.uint8))
    ids = processor.tokenizer(caption).input_ids
    ids = torch.tensor([ids if len(ids) <= 20 else [*ids[:19], ids[-1]]])
    pixels = processor.image_processor(image, return_tensors="pt").pixel_values
    with torch.no_grad():
        text = model.text_projection(model.text_model(ids).pooler_output)[0]
        picture = model.visual_projection(model.vision_model(pixels).pooler_output)[0]
    return max(0.0, 100 * float(text @ picture / text.norm() / picture.norm()))


@pytest.mark.parametrize("frames", [(), (2,)], ids=["pictures", "clips"])
def test_clip_scores_are_those_of_the_model_in_the_folder(clip: Path, frames: tuple[int, ...], tmp_path: Path) -> None:
    store, pictures = _drawn(tmp_path, (*frames, SIDE, SIDE, 3), metrics=("clip",), clip=str(clip))
    rows = _scores(store)
    full, quantized = torch.cat(pictures[::2]), torch.cat(pictures[1::2])
    for place, row in enumerate(rows):
        assert set(row) == {"prompt", "seed", "clip", "clip_full_precision"}
        for column, each in (("clip", quantized[place]), ("clip_full_precision", full[place])):
            right = [_clip_score(clip, CAPTIONS[place % 2], frame) for frame in (each if frames else each[None])]
            assert row[column] == pytest.approx(float(np.mean(right)), abs=1e-3)
    assert len({row["clip"] for row in rows}) > 1


class Lpips(nn.Module):
    """A stand-in that takes what LPIPS takes: [N, 3, H, W] in [-1, 1]; the mean absolute difference of red."""

    def __init__(self, net: str, verbose: bool) -> None:
        super().__init__()
        assert (net, verbose) == ("alex", False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if a.shape[-1] < 8:
            raise RuntimeError("Output size is\n too small")
        assert a.shape[1] == 3 and a.min() >= -1 and a.min() < -0.9 and a.max() <= 1
        return (a - b)[:, :1].abs().mean((1, 2, 3), keepdim=True)


@pytest.fixture
def lpips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The package and torchvision are there, and so is the checkpoint, whose path this is."""
    for name in ("lpips", "torchvision"):
        module = ModuleType(name)
        module.__spec__ = SimpleNamespace(name=name)  # type: ignore[assignment]
        module.LPIPS = Lpips  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    checkpoint = tmp_path / "torch" / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("")
    return checkpoint


@pytest.mark.parametrize("frames", [(), (20,)], ids=["pictures", "clips"])
def test_lpips_sees_both_pictures_between_minus_one_and_one(
    lpips: Path, frames: tuple[int, ...], tmp_path: Path
) -> None:
    store, pictures = _drawn(tmp_path, (*frames, 12, 8, 3), metrics=("lpips",))
    rows = _scores(store)
    gaps = 2 * (torch.cat(pictures[::2]) - torch.cat(pictures[1::2]))[..., 0].abs().flatten(1).mean(1)
    assert [row["lpips"] for row in rows] == pytest.approx(gaps.tolist(), rel=1e-5)


def test_a_picture_that_is_too_small_is_named(lpips: Path, tmp_path: Path) -> None:
    store, _ = _drawn(tmp_path, (6, 4, 3), metrics=("lpips",))
    with pytest.raises(StageError, match=r"lpips cannot score a picture of 6 x 4 pixels \(Output size is too small\)"):
        Perceptual(store.context)("scores/000")


def test_samples_have_no_scores_until_all_are_there(lpips: Path, tmp_path: Path) -> None:
    store, _ = _drawn(tmp_path, (12, 8, 3), metrics=("lpips",))
    Perceptual(store.context)("scores/000")
    assert all("lpips" not in row for row in samples.samples(store.context))


def _refused(**asked: Any) -> str:
    with pytest.raises(NotTaken) as error:
        perceptual.check(EvaluateSettings(**asked))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_missing_for_lpips_is_named(lpips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    perceptual.check(EvaluateSettings(metrics=("lpips",)))
    lpips.unlink()
    assert f"its AlexNet is not at {lpips}; download it once: python -c" in _refused(metrics=("lpips",))
    monkeypatch.setattr(perceptual, "_installed", lambda name: name != "lpips")
    assert "lpips cannot be imported; pip install lpips, or" in _refused(metrics=("lpips",))
    monkeypatch.undo()
    perceptual.check(EvaluateSettings())


def test_what_is_missing_of_a_clip_folder_is_named(clip: Path, tmp_path: Path) -> None:
    perceptual.check(EvaluateSettings(metrics=("clip",), clip=str(clip)))
    assert "evaluate.clip is empty; name the folder" in _refused(metrics=("clip",))
    assert "there is no folder /no/where" in _refused(metrics=("clip",), clip="/no/where")
    assert "has no config.json of a model" in _refused(metrics=("clip",), clip=str(tmp_path))
    assert "that no metric uses" in _refused(clip=str(clip))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "has a config.json of model_type 'bert'" in _refused(metrics=("clip",), clip=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "model.safetensors").write_text("")
    said = _refused(metrics=("clip",), clip=str(tmp_path))
    assert "has no preprocessor_config.json, no tokenizer (" in said and "weights" not in said
