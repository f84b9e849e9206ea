"""What a user imports to run a quantized model: `import adatsq_pipe.stages.runtime`, then `from_pretrained` as ever."""

from adatsq_pipe.stages.runtime.quantizer import register

register()
