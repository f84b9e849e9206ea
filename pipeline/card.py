"""The card of a finished model (its README.md): what it is, what it scores and how that was measured, how it loads.

Equal settings and results give equal bytes: nothing of the machine, the clock or the run directory is in it.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from adatsq_pipe.pipeline.config import BUILT_IN, RunConfig, kinds, preset_tables, sampling
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.kind_quality import score_figure
from adatsq_pipe.pipeline.origin import Origin, origin_of, task_of
from adatsq_pipe.pipeline.pictures import drawn
from adatsq_pipe.pipeline.plots.ahead import POLICY
from adatsq_pipe.pipeline.summary import Facts, Mean, Summary
from adatsq_pipe.pipeline.toml_tables import as_sets
from adatsq_pipe.pipeline.versions import versions
from adatsq_pipe.stages.base.compression import resized
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.settings import DataSettings, ModelSettings
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings
from adatsq_pipe.stages.export.model_card import LOADING
from adatsq_pipe.stages.methods._recipe import Recipe, resolve
from adatsq_pipe.stages.scenes.builtin_models import builtin_models
from adatsq_pipe.stages.weights.widths import weight_widths
from adatsq_pipe.storage.model_files import components

SHEET = "sheet.png"
"""A picture of the card, which lies beside it, as POLICY does."""
SHOWN = 4
"""Captions on the sheet."""
LISTED = 48
"""At most so many held-out captions are listed."""
NOT_SAID = "cluster"
"""The table of settings that the command in the card leaves out: it says where a run goes, and changes no result."""


def card(config: RunConfig, context: Context, summary: Summary) -> str:
    """The text of the card. Its front matter is what the hub reads."""
    origin = origin_of(context.model.path)
    marker, evaluate = context.manifest("assemble").read("model"), config.settings[EvaluateSettings]
    clips = next(drawn(context))[1].ndim == 4
    images = any(row.get("images") for row in evaluate.inputs)
    environment = Environment(
        loader=PackageLoader("adatsq_pipe.pipeline.page", "templates"), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"size": _size, "resized": resized, "interval": _interval, "score": score_figure}
    environment.filters |= {"fenced": fenced, "cell": _cell}
    head = front_matter(origin, task_of(origin, clips=clips, images=images), summary)
    return environment.get_template("card.md.jinja").render(
        text=summary.text_encoders,
        head=yaml.safe_dump(head, sort_keys=False, allow_unicode=True), origin=origin, summary=summary, loading=LOADING,
        recipe=config.settings[Recipe], calibration=len(config.settings[DataSettings].prompts), evaluate=evaluate,
        captions=[" ".join(caption.split()) for caption in evaluate.prompts[:LISTED]],
        call=dict(config.settings[ModelSettings].call), world=config.settings[ModelSettings].world, clips=clips,
        shown=[(row["prompt"], row["seed"]) for row, *_ in itertools.islice(drawn(context), SHOWN)],
        widths=weight_widths(context), command=command(config, origin), versions=versions(), policy=POLICY, sheet=SHEET,
        weights=list(weight_files(context, marker.files)), facts=list(_facts(summary.facts)),
        licence=origin.inherited.get("license_name") or origin.inherited.get("license"),
    )  # fmt: skip


def front_matter(origin: Origin, task: str, summary: Summary) -> dict[str, object]:
    """What the hub reads. A base model is named only where the original says which repository it is."""
    bases = [origin.repository] if origin.repository else list(origin.ancestors)
    bits = f"w{summary.bits.weights_mean:.0f}a{summary.bits.activations_mean:.0f}"
    return {
        **({"base_model": bases[0] if len(bases) == 1 else bases} if bases else {}),
        **({"base_model_relation": "quantized"} if origin.repository else {}),
        "library_name": "diffusers",
        "pipeline_tag": task,
        **origin.inherited,
        "tags": ["adatsq", "quantized", "post-training-quantization", bits],
    }


def weight_files(context: Context, files: Mapping[str, tuple[int, str]]) -> Iterator[tuple[str, int, str]]:
    """(name, bytes, SHA-256) of every file of weights in the assembled folder, as its marker has them."""
    folder = context.manifest("assemble").local_folder("model")
    names = {name for component in components(folder).values() for name in component.weights}
    yield from ((name, *files[name]) for name in sorted(names) if name in files)


def command(config: RunConfig, origin: Origin) -> str:
    """The command that makes the model again: the settings that differ from those of the preset.

    Captions stand for themselves, in a file that a reader has to write; paths of this machine are left out, and so is
    where the run went.
    """
    preset = str(config.request.get("preset", "w4a4"))
    asked: Any = config.request.get("tables", {})
    changed = {
        name: _changed(name, asked[name], preset, config) for name in kinds() if name in asked and name != NOT_SAID
    }
    path = str(asked.get("model", {}).get("path", "")) or BUILT_IN
    model = path if path in builtin_models() else origin.name
    try:
        sets = [part for text in as_sets(changed) for part in ("--set", text)]
    except ConfigError:  # tables in lists, which no --set expresses
        sets = ["--config", "settings.toml"]
    return shlex.join(
        ["adatsq-pipe", "run", "--model", model, *(["--preset", preset] if preset != "w4a4" else []), *sets]
    )


def _changed(table: str, values: Mapping[str, Any], preset: str, config: RunConfig) -> dict[str, Any]:
    """The settings of a table that are not what they would be without them."""
    named = preset_tables(preset).get(table, {})
    if table == Recipe.table:
        before = resolve({**named, "method": config.settings[Recipe].method}).model_dump() | {"method": "endpoint"}
    else:
        before = {name: field.default for name, field in kinds()[table].model_fields.items()} | named
    changed = {key: value for key, value in values.items() if key == "call" or value != before[key]}
    if table == ModelSettings.table:
        own = sampling(config.model).get("call", {})
        changed["call"] = {key: value for key, value in changed.get("call", {}).items() if own.get(key, ...) != value}
        changed.pop("path", None)
    if changed.pop("prompts", None) or changed.pop("prompts_file", None):
        changed["prompts_file"] = f"{'held-out' if table == EvaluateSettings.table else 'calibration'}-captions.txt"
    return dict(sorted(changed.items()))


def fenced(text: str) -> str:
    """Text in a block of code, whatever backticks it holds."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _cell(text: str) -> str:
    """Text in a cell of a table, on one line and literally."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _facts(facts: Facts) -> Iterator[str]:
    """What a user of the model should know, in lines."""
    left = Counter[str]()
    for row in facts.left_alone:
        left[str(row.get("why", ""))] += int(str(row.get("count") or 0))
    for why, count in sorted(left.items()):
        yield f"left in the precision of the original: {count} modules ({why})"
    for name, names in (
        ("not called in the calibration, and left alone", facts.layers_not_called),
        ("called repeatedly, and left alone", facts.layers_called_repeatedly_and_left_alone),
        ("layers whose weights alone are quantized", facts.weight_only_layers),
        ("layers whose weight groups are smaller than the recipe's, for their widths", list(facts.groups_fitted)),
        ("layers whose solver needed more damping than configured", list(facts.damping_raised)),
    ):
        if names:
            yield f"{name}: {len(names)}"
    yield f"sensitivity measured: {facts.sensitivity}"
    error, layer = facts.worst_layer_error
    yield f"largest weight error of a layer: {error:.3g} (`{layer}`)"


def _size(count: int) -> str:
    """Bytes in a unit that fits."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def _interval(value: Mean, digits: int) -> str:
    """A mean with its 95 % interval, which a single caption does not have."""
    error = value.standard_error
    return f"{value.mean:.{digits}f} ± {1.96 * error:.{digits}f}" if error else f"{value.mean:.{digits}f}"
