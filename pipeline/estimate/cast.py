"""Cast weights in a plan: the copies that the workers of a machine share on disk until the run ends."""

from __future__ import annotations

from adatsq_pipe.pipeline.estimate.outlook import Outlook
from adatsq_pipe.stages.base.settings import ComputeSettings
from adatsq_pipe.stages.denoiser.castable import kept_in_float32
from adatsq_pipe.stages.text.encoders import TextEncoderSettings, encoders_of
from adatsq_pipe.storage.cast_copy import copy_bytes


def has_weights(outlook: Outlook) -> bool:
    """Whether the weights are there to look at."""
    return bool(outlook.subject.index and outlook.subject.stored)


def cast_of(outlook: Outlook) -> int:
    """Bytes of the copies on one machine, of the model and of what the assembled folder loads besides its denoisers.

    0 where the weights are stored in the compute dtype, and where they are not there to look at.
    """
    subject, dtype = outlook.subject, outlook.settings[ComputeSettings].dtype
    if not has_weights(outlook):
        return 0
    kept, codes = kept_in_float32(subject.path, dtype), set[str]()
    if outlook.settings[TextEncoderSettings].on:
        codes = {encoder.name for encoder in encoders_of(subject.path) if not encoder.left}
    again = {name: parts for name, parts in kept.items() if name not in {*subject.denoisers, *codes}}
    return sum(copy_bytes(subject.path, dtype=dtype, kept=each) for each in (kept, again))
