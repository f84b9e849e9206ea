"""A model of the hub: what is downloaded, what is taken from the cache, and what each refusal says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from huggingface_hub import constants

from adatsq_pipe.pipeline import config
from adatsq_pipe.pipeline.commands.cli import main
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.hub_cache import files_in
from adatsq_pipe.pipeline.request import load_config, load_to_run, read_request, write_request
from adatsq_pipe.stages.base.settings import ModelSettings
from adatsq_pipe.storage.model_files import model_name
from adatsq_pipe.storage.rundir import RunDir
from tests.support.hub_server import Hub, Repository, hub

NAME = "acme/flux"
PLAIN = "transformer/diffusion_pytorch_model.safetensors"
FP16 = "transformer/diffusion_pytorch_model.fp16.safetensors"
SECRET = "hf_secret"


@pytest.fixture
def served(tmp_path: Path, tiny_flux: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the tiny pipeline and files beside it, and an empty cache."""
    with hub() as made:
        made.use(monkeypatch, tmp_path)
        monkeypatch.chdir(tmp_path)
        repository = Repository.of(tiny_flux)
        files = next(iter(repository.commits.values()))
        files["flux.safetensors"] = b"a single file"
        files[FP16] = b"a variant"
        files["README.md"] = b"---\nlicense: mit\n---\n"
        made.repositories[NAME] = repository
        yield made


def test_the_files_that_are_read_are_downloaded_once(served: Hub, tiny_flux: Path) -> None:
    folder = config.model_folder(NAME)
    commit = served.repositories[NAME].revisions["main"]
    assert folder.name == commit and folder.parent.parent.name == "models--acme--flux"
    wanted = {str(path.relative_to(tiny_flux)) for path in tiny_flux.rglob("*") if path.is_file()} | {"README.md"}
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == wanted
    assert served.sent() <= wanted, "files of the same bytes are sent once, others never"
    served.asked.clear()
    assert config.model_folder(f"hf://{NAME}") == config.model_folder(f"{NAME}@{commit}") == folder
    assert served.asked == [], "what the cache has whole is taken without a word to the hub"


def test_a_folder_goes_before_a_repository_of_its_name(served: Hub, tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir(parents=True)
    assert config.model_folder(NAME) == tmp_path / NAME and served.asked == []
    assert config.model_folder(f"hf://{NAME}").parent.parent.name == "models--acme--flux"


@pytest.mark.parametrize("name", ["runs/mine", "models/flux", "/models/flux", "./flux", "nothing"])
def test_a_path_that_is_not_there_is_no_repository(served: Hub, tmp_path: Path, name: str) -> None:
    assert config.model_folder(name) == (tmp_path / name).resolve() and served.asked == []


def test_a_run_keeps_the_commit_that_it_began_with(served: Hub, tmp_path: Path) -> None:
    repository, run = served.repositories[NAME], RunDir(tmp_path / "run")
    began = repository.revisions["main"]
    first = load_to_run(run, NAME, None, None, ())
    run.create()
    write_request(run, first)
    request = read_request(run.path)
    assert request is not None and request["tables"]["model"]["path"] == f"{NAME}@{began}"
    later = repository.commit({**repository.commits[began], "README.md": b"newer"})
    assert load_to_run(run, f"{NAME}@{later}", None, None, ()).model.name == later
    (tmp_path / "cache/models--acme--flux/refs/main").write_text(later)  # as another program's download leaves it
    for model in (None, NAME):
        assert load_config(run, model, None, None, ()).model.name == began
    assert config.model_folder(NAME).name == later


def test_a_plan_downloads_no_weights(served: Hub) -> None:
    done = CliRunner().invoke(main, ["plan", NAME, "--json", "--set", "recipe.group_fit=true"])
    assert done.exit_code == 0, done.output
    assert "transformer/config.json" in served.sent()
    assert not [name for name in served.sent() if name.endswith((".safetensors", ".bin"))]
    served.asked.clear()
    assert (config.model_folder(NAME) / PLAIN).is_file(), "a run then fetches the rest"
    assert PLAIN in served.sent() and "transformer/config.json" not in served.sent()


def test_a_look_at_a_run_downloads_nothing(served: Hub, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"acme/flux is not in the hub's cache"):
        load_config(RunDir(tmp_path / "run"), NAME, None, None, ())
    assert served.asked == []


def test_the_call_of_the_repository_is_taken(served: Hub, tiny_flux: Path) -> None:
    found = config.load(preset=None, file=None, sets=(), model=NAME, previous=None, fetch=True)
    assert found.settings[ModelSettings].call == json.loads((tiny_flux / "sampling.json").read_text())["call"]


def test_a_variant_of_the_hub_is_downloaded_beside_the_rest(served: Hub) -> None:
    folder = config.model_folder(NAME)
    served.asked.clear()
    links = config.model_folder(NAME, "fp16")
    assert served.sent() == {FP16}, "what is missing, and no more"
    assert (links / PLAIN).read_bytes() == b"a variant" != (folder / PLAIN).read_bytes()
    assert model_name(links) == NAME == model_name(folder)
    sets = ("model.variant=fp16",)
    found = config.load(preset=None, file=None, sets=sets, model=NAME, previous=None, fetch=True)
    assert found.model == links and served.asked[-1:] == [("GET", f"/{NAME}/resolve/{folder.name}/{FP16}")]


def test_sample_draws_with_the_variant(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = list[tuple[Path, bytes]]()

    def draw(folder: Path, *_: object, **__: object) -> npt.NDArray[np.float32]:
        drawn.append((folder, (folder / PLAIN).read_bytes()))
        return np.zeros((1, 2, 2, 3), np.float32)

    monkeypatch.setattr("adatsq_pipe.stages.denoiser.sample.draw", draw)
    asked = ["sample", NAME, "--prompt", "a red circle", "--out", str(tmp_path / "x.png"), "--device", "cpu"]
    asked += ["--dtype", "float32", "--variant"]
    done = CliRunner().invoke(main, [*asked, "fp16"])
    assert done.exit_code == 0 and drawn == [(config.model_folder(NAME, "fp16"), b"a variant")], done.output
    done = CliRunner().invoke(main, [*asked, "bf16"])
    assert done.exit_code == 2 and "no component of acme/flux has it" in done.output and len(drawn) == 1


def test_folders_within_components_are_downloaded_where_they_are_read(served: Hub, tmp_path: Path) -> None:
    """A pipeline inside the pipeline, and a tokenizer's further chat templates."""
    index = {"_class_name": "P", "prior": ["diffusers", "Q"], "tokenizer": ["transformers", "T"]}
    inner = {"_class_name": "Q", "transformer": ["diffusers", "M"]}
    wanted = {
        "model_index.json": json.dumps(index).encode(),
        "prior/model_index.json": json.dumps(inner).encode(),
        "prior/transformer/config.json": b"{}",
        "prior/transformer/diffusion_pytorch_model.safetensors": b"weights",
        "tokenizer/additional_chat_templates/tool.jinja": b"tool",
        "tokenizer/tokenizer.json": b"{}",
    }
    beside = {
        "prior/transformer/diffusion_pytorch_model.bin": b"x",
        "prior/notes.md": b"y",
        "tokenizer/old/a.json": b"z",
    }
    repository = Repository({}, {})
    repository.commit({**wanted, **beside})
    served.repositories["acme/nested"] = repository
    folder = config.model_folder("acme/nested")
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == set(wanted)
    served.asked.clear()
    assert config.model_folder("acme/nested") == folder and served.asked == []
    assert files_in(folder) == sorted(wanted)


def test_a_variant_that_the_repository_has_not_is_refused(served: Hub) -> None:
    with pytest.raises(ConfigError, match=r"model.variant is 'bf16', and no component of acme/flux .*variants: fp16"):
        config.model_folder(NAME, "bf16")
    assert served.sent() == {"model_index.json"}


def test_a_repository_of_variants_alone_says_which(served: Hub) -> None:
    repository = served.repositories[NAME]
    files = dict(repository.commits[repository.revisions["main"]])
    del files[PLAIN]
    repository.commit(files)
    with pytest.raises(ConfigError, match=r"transformer of acme/flux has weights of the variant fp16 alone; set model"):
        config.model_folder(NAME)


def _gated(served: Hub, patch: pytest.MonkeyPatch) -> None:
    served.repositories[NAME].gated, served.repositories[NAME].token = True, "other"


def _gated_with_a_token(served: Hub, patch: pytest.MonkeyPatch) -> None:
    _gated(served, patch)
    patch.setenv("HF_TOKEN", SECRET)


def _wrong_token(served: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("HF_TOKEN", "wrong")


def _offline(served: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(constants, "HF_HUB_OFFLINE", True)


def _half(served: Hub, patch: pytest.MonkeyPatch) -> None:
    folder = config.model_folder(NAME)
    (folder / "vae/config.json").unlink()
    _offline(served, patch)


def _unreachable(served: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(constants, "ENDPOINT", f"http://user:{SECRET}@127.0.0.1:9")


def _no_index(served: Hub, patch: pytest.MonkeyPatch) -> None:
    served.repositories[NAME].commit({"flux.safetensors": b"a single file"})


def _down(served: Hub, patch: pytest.MonkeyPatch) -> None:
    served.status = 503


def _nothing(served: Hub, patch: pytest.MonkeyPatch) -> None:
    """The hub is as it is."""


@pytest.mark.parametrize(
    ("name", "state", "said"),
    [
        ("acme/none", _nothing, "no model acme/none .* no token is set here.* no folder of that name"),
        (f"{NAME}@v9", _nothing, "acme/flux has no revision 'v9'.*/acme/flux/tree/main"),
        (NAME, _gated, "is gated, and no token is set here; accept its terms at .*/acme/flux.*HF_TOKEN"),
        (NAME, _gated_with_a_token, "is gated, and the token that is set here has no access"),
        (NAME, _wrong_token, r"refuses acme/flux \(401\).*correct HF_TOKEN"),
        (NAME, _offline, "acme/flux is not in the cache .*HF_HUB_OFFLINE is set; run once without it"),
        (NAME, _half, "acme/flux is only partly in the cache .*HF_HUB_OFFLINE is set"),
        (NAME, _unreachable, r"http://127.0.0.1:9 cannot be reached \(.*check the network"),
        (NAME, _no_index, "acme/flux has no model_index.json, so it is no diffusers pipeline"),
        (NAME, _down, "answered 503 for acme/flux; run again later"),
    ],
)
def test_what_cannot_be_had_is_one_line(
    served: Hub,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    state: Callable[[Hub, pytest.MonkeyPatch], None],
    said: str,
) -> None:
    state(served, monkeypatch)
    with pytest.raises(ConfigError, match=said) as caught:
        config.model_folder(name)
    assert "\n" not in str(caught.value) and SECRET not in str(caught.value)


def test_what_is_missing_is_downloaded_and_the_rest_kept(served: Hub) -> None:
    folder = config.model_folder(NAME)
    shutil.rmtree(folder / "vae")
    served.asked.clear()
    assert config.model_folder(NAME) == folder and (folder / "vae/config.json").is_file()
    assert all(name.startswith("vae/") for name in served.sent())
