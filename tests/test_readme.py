"""README.md and the rooms' READMEs name only what exists: paths, links, commands, options, settings, benches."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from adatsq_pipe.pipeline.commands.cli import main
from adatsq_pipe.pipeline.config import kinds
from adatsq_pipe.stages.base.stage import STAGES
from adatsq_pipe.stages.methods._recipe import methods

ROOT = Path(__file__).parent.parent
ROOMS = ("stages", "pipeline", "cluster", "storage")
BUILT_IN_MODELS = ROOT / "stages/scenes/models"
DOCUMENTS = sorted(
    (
        ROOT / "README.md",
        *(ROOT / ".github").rglob("*.md"),
        *(ROOT / "tests/bench").rglob("*.md"),
        *(path for room in ROOMS for path in (ROOT / room).rglob("*.md") if BUILT_IN_MODELS not in path.parents),
    )
)
PLACEHOLDER = re.compile(r"[<>*{}]|\.\.\.")
of_every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def _code(text: str) -> list[str]:
    """Lines of fenced code, joined where they continue, and inline code."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.M | re.S)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    return [line for block in fenced for line in block.replace("\\\n", " ").splitlines()] + inline


def _command_lines(text: str) -> Iterator[list[str]]:
    """The words after `adatsq-pipe`, of every command line in the code of a document."""
    for line in _code(text):
        for found in re.finditer(r"(?:^|&& |\s)adatsq-pipe +(?=[a-z-])([^&|#\n]+)", line):
            words = shlex.split(found[1])
            yield words[: words.index("...")] if "..." in words else words


def _options(command: str) -> set[str]:
    params = main.commands[command].params if command in main.commands else main.params
    return {
        name for param in params if isinstance(param, click.Option) for name in (*param.opts, *param.secondary_opts)
    }


def _keys(table: str) -> set[str]:
    return set(kinds()[table].model_fields) if table in kinds() else set()


def test_the_readme_has_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@of_every_document
def test_every_link_leads_to_a_file_or_folder(document: Path) -> None:
    text = document.read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    relative = [link.partition("#")[0] for link in links if "://" not in link]
    assert [link for link in relative if not (document.parent / link).exists()] == []


@of_every_document
def test_every_path_in_code_exists(document: Path) -> None:
    words = [word.strip(",;:'\"()") for line in _code(document.read_text()) for word in line.split()]
    of_root = [
        w for w in words if re.match(rf"(\.ci|\.github|tests|{'|'.join(ROOMS)})/", w) and not PLACEHOLDER.search(w)
    ]
    missing = [w for w in of_root if not (ROOT / w).exists() and not (document.parent / w).exists()]
    if document.parent != ROOT / ".github":
        modules = [w for w in words if re.fullmatch(r"[a-z_/]+\.(py|yaml)", w) and w not in of_root]
        folders = (document.parent, document.parent.parent)
        missing += [w for w in modules if not any(list(folder.rglob(w)) for folder in folders)]
    assert missing == []


@of_every_document
def test_every_command_and_option_exists(document: Path) -> None:
    unknown = []
    for words in _command_lines(document.read_text()):
        command = words[0] if not words[0].startswith("-") else ""
        if command and command not in main.commands:
            unknown.append(command)
        for i, word in enumerate(words):
            if word == "--" and i + 1 < len(words):
                command = words[i + 1]
            elif word.startswith("--") and word.partition("=")[0] not in {*_options(command), "--help", "--version"}:
                unknown.append(f"{command} {word}")
    assert unknown == []


@of_every_document
def test_every_setting_exists(document: Path) -> None:
    named = re.findall(r"--set[ =](\w+)\.(\w+)", document.read_text())
    assert [(t, key) for t, key in named if t != "table" and key not in _keys(t)] == []


@of_every_document
def test_every_python_module_that_is_run_exists(document: Path) -> None:
    named = re.findall(r"python -m ((?:tests|adatsq_pipe)[\w.]+)", document.read_text())
    assert [name for name in named if find_spec(name) is None] == []


@pytest.mark.parametrize("document", ["README.md", "stages/README.md"])
def test_every_stage_is_named_with_its_path(document: str) -> None:
    text = (ROOT / document).read_text()
    paths = [module.replace(".", "/") + ".py" for module in STAGES.values()]
    assert [path for path in paths if path not in text] == []
    assert [name for name in STAGES if f"**{name}**" not in text] == []


@pytest.mark.parametrize("document", ["README.md", "stages/methods/README.md"])
def test_every_method_is_named(document: str) -> None:
    text = (ROOT / document).read_text()
    assert [name for name in methods() if f"`{name}`" not in text] == []


def test_every_figure_of_the_readme_s_table_is_in_the_result_that_it_links_to() -> None:
    table = (ROOT / "README.md").read_text().partition("## Results")[2].partition("## Repository")[0]
    linked = re.findall(r"\[results\]\((tests/bench/results/[\w.-]+)\)", table)
    assert len(linked) == 1
    measured = (ROOT / linked[0]).read_text()
    figures = re.findall(r"[+-]\d+\.\d\d ± \d+\.\d\d", table)
    assert len(figures) >= 10  # two bit-widths x five models, and what is said of other captions
    assert [figure for figure in figures if figure not in measured] == []


def test_every_result_has_its_date_commit_machine_and_command_and_is_listed() -> None:
    listed = (ROOT / "tests/bench/README.md").read_text()
    results = sorted((ROOT / "tests/bench/results").glob("*.md"))
    assert len(results) > 10
    for result in results:
        head = result.read_text().split("\n\n")[1:3]
        assert re.fullmatch(r"- date: 2\d{3}-.*\n- commit: .+\n- machine: .+\n- command:", head[0]), result.name
        assert head[1].startswith("```bash\n"), result.name
        assert f"results/{result.name}" in listed, result.name
