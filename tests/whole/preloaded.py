"""What a run in one process imports: a test's command line is forked from a process that has done so already.

The command line itself is not among it, nor anything that starts threads.
"""

import importlib

PIPELINES = ("DiTPipeline", "FluxPipeline", "WanPipeline", "ZImagePipeline")
OURS = {
    "pipeline": "compare plan report runner screen",
    "pipeline.commands": "inspect remote",
    "stages": "runtime",
    "stages.allocation": "decoupled_worker rollout search",
    "stages.calibration": "capture_worker fisher_worker hessian_worker input_transform",
    "stages.denoiser": "denoiser sample",
    "stages.evaluation": "evaluate_worker floor_worker reference_worker",
    "stages.export": "assemble_worker",
    "stages.numerics": "beam gptq grid lowrank metrics packing policy sensitivity weight",
    "stages.scenes.world": "detector metrics scorer",
    "stages.weights": "solve_worker",
    "storage": "arrays checkpoint tables tensors",
}

diffusers = importlib.import_module("diffusers")
for pipeline in PIPELINES:
    getattr(diffusers, pipeline)
for room, modules in OURS.items():
    for module in modules.split():
        importlib.import_module(f"adatsq_pipe.{room}.{module}")
