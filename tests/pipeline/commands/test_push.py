"""`push`: what arrives at the hub, against the files of the model; and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from huggingface_hub import constants

from adatsq_pipe.pipeline.commands.cli import main
from tests.support.hub_server import Hub, Repository, hub

NAME = "acme/flux-w4a4"
# Of the HTTP client, at the way in which huggingface_hub hands it the bytes of a file.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
CARD = "---\nlibrary_name: diffusers\n---\n# A model\n"
ASSEMBLED, EVALUATED = "a" * 64, "e" * 64


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub, and the token that may write to it."""
    with hub() as made:
        made.use(monkeypatch, tmp_path)
        monkeypatch.setenv("HF_TOKEN", made.writer)
        monkeypatch.chdir(tmp_path)
        yield made


@pytest.fixture
def run(tmp_path: Path, tiny_flux: Path) -> Path:
    """A run directory as a finished run leaves it."""
    folder = tmp_path / "run"
    model = folder / "published" / ASSEMBLED[:16] / EVALUATED[:16]
    shutil.copytree(tiny_flux, model)
    (model / "README.md").write_text(CARD)
    (model / ".DS_Store").write_text("of some desktop")
    (folder / "model").symlink_to(model.relative_to(folder))
    (folder / "run.json").write_text("{}")
    (folder / "report").mkdir()
    (folder / "report/summary.json").write_text(json.dumps({"fingerprint": EVALUATED}))
    return folder


def push(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["push", *arguments])


def wanted(run: Path) -> dict[str, bytes]:
    model = run / "model"
    files = [path for path in model.resolve().rglob("*") if path.is_file() and path.name != ".DS_Store"]
    return {path.relative_to(model.resolve()).as_posix(): path.read_bytes() for path in files}


def test_the_model_and_its_card_arrive(served: Hub, run: Path) -> None:
    done = push("run", NAME, "--private", "--message", "first")
    assert done.exit_code == 0, done.output
    there = served.repositories[NAME]
    assert there.commits[there.at("main")] == wanted(run) and there.private and there.messages == ["first"]
    assert there.commits[there.at("main")]["README.md"] == CARD.encode()
    assert f"{served.url}/{NAME}: {len(wanted(run))} files" in done.output and there.at("main") in done.output
    assert served.writer not in done.output


def test_a_branch_is_made_and_the_rest_stays(served: Hub, run: Path) -> None:
    served.repositories[NAME] = Repository({}, {})
    before = served.repositories[NAME].commit({"notes.txt": b"ours"})
    done = push("run", NAME, "--revision", "w4", "--json")
    assert done.exit_code == 0, done.output
    there, said = served.repositories[NAME], json.loads(done.stdout)
    assert there.at("main") == before and there.commits[there.at("w4")] == {"notes.txt": b"ours", **wanted(run)}
    assert said["url"] == f"{served.url}/{NAME}/tree/w4" and said["commit"] == there.at("w4")
    assert said["bytes"] == sum(map(len, wanted(run).values()))


def test_weights_that_would_be_read_in_place_of_the_model_are_removed(served: Hub, run: Path) -> None:
    """Shards of an earlier model and their index go; what is of a variant, of another folder or no weight stays."""
    stem = "transformer/diffusion_pytorch_model"
    stale = [f"{stem}-00001-of-00002.safetensors", f"{stem}-00002-of-00002.safetensors"]
    stale += [f"{stem}.safetensors.index.json", "vae/diffusion_pytorch_model.bin"]
    stays = [f"{stem}.fp16.safetensors", "transformer/notes.txt", "lora/pytorch_model.bin", "model.safetensors"]
    served.repositories[NAME] = Repository({}, {})
    served.repositories[NAME].commit({name: name.encode() for name in [*stale, *stays]})
    done = push("run", NAME, "--json")
    assert done.exit_code == 0, done.output
    there = served.repositories[NAME]
    assert there.commits[there.at("main")] == {**{name: name.encode() for name in stays}, **wanted(run)}
    assert json.loads(done.stdout)["removed"] == sorted(stale)
    assert "removed" not in push("run", NAME).output


def test_a_model_folder_without_a_run_is_taken(served: Hub, run: Path) -> None:
    assert push("run/model", NAME).exit_code == 0
    assert served.repositories[NAME].commits[served.repositories[NAME].at("main")] == wanted(run)


def test_a_dry_run_asks_nothing(served: Hub, run: Path) -> None:
    done = push("run", NAME, "--dry-run")
    assert done.exit_code == 0 and served.asked == []
    assert "transformer/diffusion_pytorch_model.safetensors" in done.output and "nothing was uploaded" in done.output
    plain = json.loads(push("run", NAME, "--dry-run", "--json").output)
    assert plain["files"] == {name: len(data) for name, data in wanted(run).items()}


def _unfinished(run: Path) -> None:
    (run / "report/summary.json").unlink()


def _of_an_older_report(run: Path) -> None:
    (run / "report/summary.json").write_text(json.dumps({"fingerprint": "f" * 64}))


@pytest.mark.parametrize("change", [_unfinished, _of_an_older_report])
def test_an_unfinished_run_is_refused_with_the_next_command(served: Hub, run: Path, change: object) -> None:
    assert callable(change)
    change(run)
    done = push("run", NAME)
    assert done.exit_code == 1 and "finish it with: adatsq-pipe run --run-dir run" in done.output
    assert served.asked == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "name"), "name is no repository of the hub; write org/name"),
        (("run", f"{NAME}@w4"), f"write {NAME} --revision w4"),
    ],
)
def test_a_wrong_name_is_refused(served: Hub, run: Path, arguments: tuple[str, ...], said: str) -> None:
    done = push(*arguments)
    assert done.exit_code == 2 and said in done.output and served.asked == []


def test_what_the_hub_does_not_take_is_one_line(served: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served.repositories[NAME] = Repository({}, {})
    served.repositories[NAME].commit({})
    done = push("run", NAME, "--private")
    assert done.exit_code == 2 and "is there already and public" in done.output
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    done = push("run", "acme/other")
    assert done.exit_code == 1 and "refuses to write to acme/other (403)" in done.output
    assert "hf_reader" not in done.output and len(done.output.strip().splitlines()) == 1
    monkeypatch.delenv("HF_TOKEN")
    done = push("run", NAME)
    assert done.exit_code == 2 and "no token is set here; log in with `hf auth login`" in done.output
    assert all(not repository.messages for repository in served.repositories.values())


def test_without_the_network_nothing_is_uploaded(served: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = push("run", NAME)
    assert done.exit_code == 1 and "HF_HUB_OFFLINE is set; nothing can be uploaded" in done.output
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    done = push("run", NAME)
    assert done.exit_code == 1 and "http://127.0.0.1:9 cannot be reached" in done.output
