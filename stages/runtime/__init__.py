"""What a user imports to run a quantized model: `import adatsq_pipe.stages.runtime`, then `from_pretrained` as ever.

`execute(pipe.transformer, "simulate")` chooses how its layers compute; see `EXECUTIONS`.
"""

from adatsq_pipe.stages.runtime.linear import EXECUTIONS, execute
from adatsq_pipe.stages.runtime.quantizer import AdatsqConfig, register

__all__ = ["EXECUTIONS", "AdatsqConfig", "execute"]

register()
