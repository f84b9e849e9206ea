"""Perceptual: optional metrics of the pictures that are drawn already, LPIPS and CLIP score.

It is part of a run only where `evaluate.metrics` names some, and it draws nothing: another metric costs no other stage.
Units: `scores/<batch>`, a row for each sample of evaluate's unit of that number.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from adatsq_pipe.stages.base.context import Context, Executor, Report, WorkerRef
from adatsq_pipe.stages.base.errors import NotTaken
from adatsq_pipe.stages.base.run_settings import RunSettings
from adatsq_pipe.stages.base.stage import Stage
from adatsq_pipe.stages.base.units import fan_out
from adatsq_pipe.stages.evaluation.draws import EvaluateSettings, batch_count
from adatsq_pipe.storage.files import read_json_object
from adatsq_pipe.storage.fingerprint import Plain

WORKER = WorkerRef(stage="perceptual", path="adatsq_pipe.stages.evaluation.perceptual_worker:Perceptual")
ROWS = "scores.parquet"
BACKBONE = "alexnet-owt-7be5be79.pth"
"""The file that torchvision downloads its AlexNet to, below the torch hub's checkpoints."""
READ = (".json", ".txt", ".safetensors", ".bin")
"""Endings of the files of a CLIP folder that are read."""


def check(settings: EvaluateSettings) -> None:
    """Raise NotTaken where the package or the weights of a metric are missing, with what to install or name."""
    if "lpips" in settings.metrics:
        _check_lpips()
    if "clip" in settings.metrics:
        _check_clip(settings.clip)
    elif settings.clip:
        raise NotTaken(
            'evaluate.clip names a model that no metric uses; set evaluate.metrics=["clip"] or evaluate.clip=""'
        )


def _check_lpips() -> None:
    lacking = [name for name in ("lpips", "torchvision") if not _installed(name)]
    if lacking:
        raise NotTaken(
            f"evaluate.metrics has lpips, and {' and '.join(lacking)} cannot be imported; "
            f"pip install {' '.join(lacking)}, or leave lpips out"
        )
    if not checkpoint().is_file():
        raise NotTaken(
            f"evaluate.metrics has lpips, and its AlexNet is not at {checkpoint()}; download it once: "
            "python -c \"import torchvision; torchvision.models.alexnet(weights='DEFAULT')\", or leave lpips out"
        )


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def checkpoint() -> Path:
    """Where the torch hub keeps LPIPS' AlexNet."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("TORCH_HOME") or os.path.join(cache, "torch")
    return Path(home).expanduser() / "hub" / "checkpoints" / BACKBONE


def _check_clip(name: str) -> None:
    ask = "name the folder of a CLIPModel with its processor, e.g. a copy of openai/clip-vit-base-patch32"
    if not name:
        raise NotTaken(f"evaluate.metrics has clip, and evaluate.clip is empty; {ask}")
    folder = Path(name)
    if not folder.is_dir():
        raise NotTaken(f"evaluate.clip: there is no folder {folder}; {ask}")
    try:
        kind = read_json_object(folder / "config.json").get("model_type")
    except (OSError, ValueError):
        kind = None
    if kind != "clip":
        of = f"a config.json of model_type {kind!r}" if kind else "no config.json of a model"
        raise NotTaken(f"evaluate.clip: {folder} has {of}; {ask}")
    names = clip_files(folder)
    missing = {
        "weights (model.safetensors)": any(n.endswith((".safetensors", ".bin")) for n in names),
        "preprocessor_config.json": {"preprocessor_config.json", "processor_config.json"} & set(names),
        "tokenizer (tokenizer.json, or vocab.json and merges.txt)": {"tokenizer.json", "vocab.json"} & set(names),
    }
    if lacking := [what for what, there in missing.items() if not there]:
        raise NotTaken(f"evaluate.clip: {folder} has no {', no '.join(lacking)}; {ask}")


def clip_files(folder: Path) -> list[str]:
    """Names of the files of a CLIP folder that results depend on, sorted."""
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix in READ)


def _reads(settings: RunSettings, clip: str) -> Plain:
    """What the scores depend on besides the draws. `clip` is the digest of the CLIP model's files."""
    metrics = sorted(set(settings[EvaluateSettings].metrics))
    return {"metrics": metrics, **({"clip": clip} if "clip" in metrics else {})}


def _units(context: Context) -> list[str]:
    return [f"scores/{i:03d}" for i in range(batch_count(context))]


def run(context: Context, executor: Executor, report: Report) -> None:
    fan_out(context, executor, WORKER, _units(context), report)


STAGE = Stage(
    name="perceptual",
    version=1,
    needs=("reference", "evaluate"),
    reads=_reads,
    run=run,
    expected=lambda context: len(_units(context)),
    settings=EvaluateSettings,
)
