"""What a stage's bytes may depend on: the code of its module and of what that imports, without comments and docstrings.

`python -m tests.support.stage_sources` writes the digests of today into stage_sources.json. Do it after a change that
leaves the bytes as they were; after one that does not, raise the stage's `version` first.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from pathlib import Path

from adatsq_pipe.stages.base.stage import STAGES, all_stages

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).with_name("stage_sources.json")
PACKAGE = "adatsq_pipe.stages."
WITHOUT_BYTES = ("base.", "scenes.train", "architecture.support")
"""Modules that decide how work is run or refused, and not what it gives."""


def digest_of(stage: str) -> str:
    """SHA-256 of the code behind a stage."""
    return hashlib.sha256(json.dumps(sorted(reached(stage).items())).encode()).hexdigest()[:16]


def reached(stage: str) -> dict[str, str]:
    """The code of every module that the stage's own reaches by imports, inside functions too, by its name."""
    todo, seen = [f"{PACKAGE}{STAGES[stage]}", f"{PACKAGE}{STAGES[stage]}_worker"], dict[str, str]()
    while todo:
        module = todo.pop()
        if module in seen or module.removeprefix(PACKAGE).startswith(WITHOUT_BYTES) or not (path := _path(module)):
            continue
        seen[module], imported = _parsed(path)
        todo += sorted(imported)
    return seen


@functools.cache
def _parsed(path: Path) -> tuple[str, frozenset[str]]:
    """A module's code and what it imports; stages share most modules."""
    tree = ast.parse(path.read_text())
    return _code(tree), frozenset(_imported(tree))


def _path(module: str) -> Path | None:
    place = ROOT / module.removeprefix("adatsq_pipe.").replace(".", "/")
    candidates = (place.with_suffix(".py"), place / "__init__.py")
    return next((path for path in candidates if path.exists()), None)


def _imported(tree: ast.AST) -> set[str]:
    names = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE[:-1]):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith(PACKAGE)}
    return names


def _code(tree: ast.Module) -> str:
    """The module's code as Python writes it, without strings that stand alone."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            bare = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
            body[:] = bare or [ast.Pass()]
    return ast.unparse(tree)


def source(stage: str) -> dict[str, object]:
    """A stage's version and digest, as they are now."""
    return {"version": all_stages()[stage].version, "source": digest_of(stage)}


if __name__ == "__main__":
    RECORD.write_text(json.dumps({stage: source(stage) for stage in STAGES}, indent=1) + "\n")
