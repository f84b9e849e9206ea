"""`settings`: every table, key, type, default and text, read from the settings classes."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from dataclasses import asdict, dataclass

import click
from pydantic.fields import FieldInfo

from adatsq_pipe.pipeline.commands import completion
from adatsq_pipe.pipeline.commands.shell import example, user_errors
from adatsq_pipe.pipeline.config import kinds
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.stages.base.settings import Settings
from adatsq_pipe.stages.methods._recipe import Recipe, resolve
from adatsq_pipe.storage.fingerprint import Plain

WIDTH = 79


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One key of a table. `default` is a JSON value; `type` is the annotation with its bounds."""

    key: str
    type: str
    default: Plain
    text: str


@click.command(
    short_help="List the settings: tables, keys, types and defaults.",
    epilog=example("settings search"),
)
@click.argument("table", default="", shell_complete=completion.tables)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@user_errors
def settings(table: str, as_json: bool) -> None:
    """List the settings of TABLE, or of all tables: key, type, default and text.

    Change one with `--set TABLE.KEY=VALUE`, or in a TOML file with `--config`. A preset or a model folder may set
    another value than the default shown.
    """
    tables = kinds()
    if table and table not in tables:
        raise ConfigError(f"unknown table {table!r}; choose from {', '.join(tables)}")
    chosen = {name: kind for name, kind in tables.items() if table in ("", name)}
    if as_json:
        plain = {name: {s.key: asdict(s) for s in settings_of(kind)} for name, kind in chosen.items()}
        click.echo(json.dumps(plain, indent=1))
        return
    click.echo("\n\n".join(text(kind) for kind in chosen.values()))


def settings_of(kind: type[Settings]) -> list[Setting]:
    """Every key of a table, in the order of the class. The defaults of [recipe] are those of the default method."""
    documented = _documented(kind)
    base = resolve({}).model_dump() if kind is Recipe else {}
    listed = []
    for key, field in kind.model_fields.items():
        annotation, doc = documented[key]
        default = base[key] if key in base else field.get_default(call_default_factory=True)
        plain = json.loads(json.dumps(default, default=list))
        listed.append(Setting(key=key, type=annotation + _bounds(field), default=plain, text=doc))
    return listed


def text(kind: type[Settings]) -> str:
    """A table as `settings` prints it."""
    head = " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split()).removeprefix(f"[{kind.table}]")
    parts = [_wrapped(f"[{kind.table}]{head}", "")]
    for setting in settings_of(kind):
        parts.append(f"{setting.key} = {json.dumps(setting.default)}   ({setting.type})")
        if setting.text:
            parts.append(_wrapped(setting.text, "    "))
    return "\n".join(parts)


def _wrapped(line: str, indent: str) -> str:
    return textwrap.fill(line, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _documented(kind: type[Settings]) -> dict[str, tuple[str, str]]:
    """Annotation and attribute docstring of every field, from the source of the class and its bases."""
    fields: dict[str, tuple[str, str]] = {}
    for owner in reversed(kind.__mro__):
        if not issubclass(owner, Settings):
            continue
        (parsed,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(parsed, ast.ClassDef)
        for node, following in zip(parsed.body, [*parsed.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                key = node.target.id
                _, inherited = fields.get(key, ("", ""))
                fields[key] = (ast.unparse(node.annotation), _docstring(following) or inherited)
    return fields


def _docstring(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""


def _bounds(field: FieldInfo) -> str:
    """The bounds and the pattern of a field, e.g. ", >= 1"."""
    signs = {
        "ge": ">=",
        "gt": ">",
        "le": "<=",
        "lt": "<",
        "min_length": "length >=",
        "max_length": "length <=",
        "pattern": "matches",
    }
    parts = [
        f", {sign} {value}"
        for constraint in field.metadata
        for name, sign in signs.items()
        if (value := getattr(constraint, name, None)) is not None
    ]
    return "".join(parts)
