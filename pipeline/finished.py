"""Whether what a finished run published is still what it was: its model and its report. Read from files alone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from adatsq_pipe.pipeline.summary import FILE
from adatsq_pipe.storage.files import read_json_object
from adatsq_pipe.storage.published import PublishedModel
from adatsq_pipe.storage.rundir import RunDir


def reported(run: RunDir) -> str | None:
    """The fingerprint of the evaluation that the report is of: None without a report, "" if it cannot be read."""
    try:
        return str(read_json_object(run.report / FILE).get("fingerprint", ""))
    except FileNotFoundError:
        return None
    except ValueError:
        return ""


def additions(run: RunDir) -> str:
    """What the report has besides its evaluation, as Summary.additions says it; "" without a report."""
    try:
        return str(read_json_object(run.report / FILE).get("additions", ""))
    except (FileNotFoundError, ValueError):
        return ""


def damage(run: RunDir, fingerprints: Mapping[str, str]) -> str:
    """What is wrong with the model and the report of the run with these fingerprints of its stages; "" if nothing is.

    A run that is of another report, or of none, has published nothing yet.
    """
    model = PublishedModel(run.published_folder(fingerprints["assemble"], fingerprints["evaluate"]))
    of = reported(run)
    if run.stored_model is not None:
        return run.stored_model.damage() if of is not None else ""
    if of not in (fingerprints["evaluate"], "") and not (of is None and model.vouched):
        return ""
    if run.model.resolve() != model.folder.resolve():
        return f"{run.display('model')} is no link to {run.display(str(model.folder.relative_to(run.path)))}"
    return model.damage(report=run.report)


def stands(run: RunDir, fingerprints: Mapping[str, str], wanted: str = "") -> bool:
    """Whether the model and the report of the run with these fingerprints are there, vouched for and undamaged, and the
    report has the additions `wanted`."""
    model = PublishedModel(run.published_folder(fingerprints["assemble"], fingerprints["evaluate"]))
    vouched = run.stored_model is not None or model.vouched
    same = reported(run) == fingerprints["evaluate"] and additions(run) == wanted
    return vouched and same and not damage(run, fingerprints)


def verify(run: RunDir) -> tuple[int, list[tuple[str, str, str]]]:
    """Hash every file of every published model, and of the report: (models, (what, which, what is wrong) of the bad).

    The next run writes the damaged ones again.
    """
    wrong, models = list[tuple[str, str, str]](), run.published_models()
    for model in models:
        report = run.report if run.model.resolve() == model.folder.resolve() else None
        if what := model.damage(report=report, thorough=True):
            wrong.append(("published", model.unit, what))
            with suppress(OSError):
                model.doubt()
    if (stored := run.stored_model) is not None and (what := stored.damage(thorough=True)):
        wrong.append(("published", "model", what))
        with suppress(OSError):
            stored.doubt()
    return len(models) + (stored is not None), wrong
