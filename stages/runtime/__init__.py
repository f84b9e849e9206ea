"""What a user imports to run a quantized model: `import adatsq_pipe.stages.runtime`, then `from_pretrained`.

Importing it registers the quantizer with diffusers, that of text encoders with transformers, and the GPU kernels where
there are a GPU and Triton.
`execute(pipe.transformer, "simulate")` chooses how the model's layers compute: one of `EXECUTIONS`.
"""

from importlib.util import find_spec

import torch

from adatsq_pipe.stages.runtime.linear import EXECUTIONS, use_gpu_kernels
from adatsq_pipe.stages.runtime.model import execute
from adatsq_pipe.stages.runtime.quantizer import AdatsqConfig, register

__all__ = ["EXECUTIONS", "AdatsqConfig", "execute"]

register()
if find_spec("transformers"):
    from adatsq_pipe.stages.runtime.text_quantizer import register_text

    register_text()
if torch.cuda.is_available() and find_spec("triton"):
    from adatsq_pipe.stages.runtime import kernels

    use_gpu_kernels(kernels)
