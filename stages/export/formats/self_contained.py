"""The quantized folder with the code that runs it inside: `from_pretrained(..., trust_remote_code=True)`, no install.

The code is one file, pipeline.py: the runtime's modules one after another, then the folder's pipeline class under
another name. diffusers copies that file alone, so it may not be several. The GPU kernel is left out: Triton must not
be needed to read the file.
"""

from __future__ import annotations

import ast
import json
import re
from importlib.util import find_spec
from pathlib import Path

from adatsq_pipe.stages.base.errors import StageError
from adatsq_pipe.stages.export.formats._formats import copy_folder, packed_encoders
from adatsq_pipe.stages.export.model_card import LOADING
from adatsq_pipe.storage.files import read_json_object, read_text, write_text

_OURS = "adatsq_pipe"
MODULES = (
    "names",
    "numerics.policy",
    "numerics.packing",
    "numerics.products",
    "numerics.transform",
    "numerics.lloyd",
    "numerics.float4",
    "numerics.grid",
    "numerics.clipping",
    "runtime.spec",
    "runtime.clock",
    "runtime.rounding",
    "runtime.shared",
    "runtime.straight_through",
    "runtime.linear",
    "runtime.model",
    "runtime.policy_hook",
    "runtime.casting",
    "runtime.refusals",
    "runtime.stored",
    "runtime.quantizer",
)
"""What runs a quantized model, each after what it imports."""
TEXT_MODULES = ("numerics.weight_grid", "numerics.weight_only", "runtime.text_layers", "runtime.text_quantizer")
"""What besides loads text encoders in codes."""
_LOADING = """```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("this folder", trust_remote_code=True)
```

The code that runs it is pipeline.py in this folder: read it before you trust it.
"""
_HEAD = '''"""Runs the quantized model in this folder: the runtime of adatsq-pipe (Apache-2.0), in one file."""

from __future__ import annotations

'''
_TAIL = '''

# --- {pipeline}, with the quantizer known to diffusers

from diffusers import {pipeline}  # noqa: E402

register(){more}


class Quantized{pipeline}({pipeline}):
    """{pipeline}; its transformer is quantized."""
'''


def export(source: Path, out: Path) -> str:
    copy_folder(source, out)
    index = read_json_object(out / "model_index.json")
    pipeline = index["_class_name"]
    write_text(out / "pipeline.py", code(pipeline, text_encoders=bool(packed_encoders(source))))
    index["_class_name"] = ["pipeline", f"Quantized{pipeline}"]
    write_text(out / "model_index.json", json.dumps(index, indent=2, sort_keys=True) + "\n")
    if (out / "README.md").exists():
        write_text(out / "README.md", _card(read_text(out / "README.md")))
    return "load it with DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True); nothing of ours is needed"


def _card(text: str) -> str:
    """A card that says how this folder loads. The section of an evaluated model's card says it of other folders too."""
    own = re.sub(
        r"^## Use\n.*?(?=^## )", lambda _: f"## Use\n\n{_LOADING}\n", text, count=1, flags=re.DOTALL | re.MULTILINE
    )
    return own.replace(LOADING, _LOADING)


def code(pipeline: str, *, text_encoders: bool = False) -> str:
    """The text of pipeline.py, with what loads `text_encoders` in codes where there are some.

    Raises StageError if two modules use one name for different things.
    """
    parts, owner = [_HEAD], dict[str, str]()
    for module in (*MODULES, *(TEXT_MODULES if text_encoders else ())):
        body, names = _body(f"{_OURS}.stages.{module}")
        for name in names:
            if owner.setdefault(name, module) != module:
                raise StageError(f"{module} and {owner[name]} both define {name}; one file cannot hold both")
        parts.append(f"# --- {module}\n\n{body.strip()}\n\n\n")
    more = "\nregister_text()" if text_encoders else ""
    return "".join(parts).rstrip() + "\n" + _TAIL.format(pipeline=pipeline, more=more)


def _body(module: str) -> tuple[str, list[str]]:
    """A module's text without its docstring, its imports of ours and the branches that import ours (LoRAs, which need
    the package), and the names it defines."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    text = read_text(Path(spec.origin))
    tree, lines, names = ast.parse(text), text.splitlines(), list[str]()
    for i, node in enumerate(tree.body):
        for part in ast.walk(node):
            if isinstance(part, ast.If) and any(map(_imports_ours, part.body)):
                _blank(lines, part)
        docstring = i == 0 and isinstance(node, ast.Expr)
        if docstring or _imports_ours(node):
            _blank(lines, node)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return "\n".join(lines), names


def _imports_ours(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (_OURS, "__future__")


def _blank(lines: list[str], node: ast.stmt) -> None:
    for line in range(node.lineno - 1, node.end_lineno or node.lineno):
        lines[line] = ""
