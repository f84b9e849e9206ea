"""What a user imports to run a quantized model: `import adatsq_pipe.stages.runtime`, then `from_pretrained` as ever.

`execute(pipe.transformer, "simulate")` chooses how its layers compute; see `EXECUTIONS`.
"""

from importlib.util import find_spec

import torch

from adatsq_pipe.stages.runtime import linear
from adatsq_pipe.stages.runtime.linear import EXECUTIONS, execute
from adatsq_pipe.stages.runtime.quantizer import AdatsqConfig, register

__all__ = ["EXECUTIONS", "AdatsqConfig", "execute"]

register()
if torch.cuda.is_available() and find_spec("triton"):
    from adatsq_pipe.stages.runtime import kernels

    linear.kernels = kernels
