"""Rehearsal: the pipeline is called as the stages will call it, before any unit, with its denoiser's first answer.

A pipeline refuses arguments that it does not take in a call alone. So one call of every kind that a run will make is
tried first: what the pipeline says is then said before anything is computed.
"""

from __future__ import annotations

from adatsq_pipe.stages.base.context import WorkerRef

WORKER = WorkerRef(stage="rehearsal", path="adatsq_pipe.stages.evaluation.rehearsal_worker:Rehearsal")
TABLES = {"capture": "data", "reference": "evaluate"}
"""The table whose prompts a stage draws first."""
