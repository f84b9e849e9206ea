"""`adatsq_pipe.pipeline.quantize`: settings in both forms, refusals before anything starts, and one whole tiny run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from adatsq_pipe.pipeline import quantize
from adatsq_pipe.pipeline.entry import tables_of
from adatsq_pipe.pipeline.errors import ConfigError


def test_dotted_names_and_tables_are_laid_together() -> None:
    assert tables_of({"search": {"width": 1}, "search.budget": 3.5, "model.call.height": 64, "data": {"seed": 2}}) == {
        "search": {"width": 1, "budget": 3.5},
        "model": {"call": {"height": 64}},
        "data": {"seed": 2},
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 3.5}, "budget=3.5 names no table"),
        ({"search": {"bugdet": 3.5}}, r"\[search\] has no key 'bugdet'; did you mean 'budget'"),
        ({"compute.device": "gpu"}, "compute.device: must be auto, cpu, cuda or cuda:N"),
        ({"recipe.method": "quark"}, "quark"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_written(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        quantize("scenes/flux-dev", tmp_path / "run", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


@pytest.mark.run
def test_importing_the_package_loads_nothing_of_the_run() -> None:
    lines = "import sys, adatsq_pipe.pipeline\nprint([m for m in ('torch', 'pydantic', 'click') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.run
def test_a_tiny_pipeline_is_quantized_and_the_summary_is_the_file(tiny_flux: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tables: dict[str, dict[str, object]] = {
        "cluster": {"executor": "inline"},
        "recipe": {"conditioning_group": 0},
        "data": {"prompts": ["a red circle", "a blue square", "two green crosses"], "batch": 2},
        "evaluate": {"prompts": ["a white cross"], "seeds": 2, "batch": 1},
        "capture": {"rows": 24, "block": 2},
    }
    summary = quantize(tiny_flux, run, **tables, **{"search.budget": 3.5, "search.rollout_prompts": 1})  # type: ignore[arg-type]
    written = json.loads((run / "report" / "summary.json").read_text())
    assert written == json.loads(json.dumps(asdict(summary)))
    assert summary.bits.budget == 3.5 and 3 <= summary.bits.activations_mean <= 3.5
    assert (summary.quality.captions, summary.quality.seeds) == (1, 2)
    config = json.loads((run / "model" / "transformer" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "adatsq"
    before = {path: path.stat().st_mtime_ns for path in run.glob("*/*/markers/**/*.json")}
    assert quantize(tiny_flux, run) == summary, "the run directory keeps its settings"
    assert before == {path: path.stat().st_mtime_ns for path in run.glob("*/*/markers/**/*.json")}, "nothing ran"
