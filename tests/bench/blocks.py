"""What one block of real size costs, stage by stage: `python -m tests.bench.blocks [--only flux|wan]`.

FLUX.1-dev's transformer with one double and one single block, and Wan 14B's with one block, of random bfloat16 weights,
in pipelines whose other parts are tiny, go through `run` from the capture to the assembled folder, in this process. The
seconds are those of the markers. Then the quantized transformer is called beside the other, in every execution that a
user would choose. Cost, not quality: two steps, one caption, few tokens (`--side`).
"""

from __future__ import annotations

import json
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from diffusers import FluxTransformer2DModel, WanTransformer3DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from adatsq_pipe.stages import runtime
from adatsq_pipe.stages.base.context import Context
from adatsq_pipe.stages.base.survey import Survey
from adatsq_pipe.stages.denoiser.call import Call
from adatsq_pipe.stages.denoiser.conditions import Conditions
from adatsq_pipe.stages.denoiser.denoiser import Denoiser
from adatsq_pipe.stages.scenes.train import components
from tests import tiny
from tests.bench import zoo
from tests.bench.runtime import medians

CONFIGS = Path(__file__).parents[1] / "zoo" / "configs"
PROMPT = "a red circle"
PLAIN = "bf16"
EXECUTIONS = ("simulate", "packed")


def _sizes(name: str, **blocks: int) -> dict[str, Any]:
    """A written-down config with fewer blocks."""
    return {**json.loads((CONFIGS / f"{name}.json").read_text()), **blocks}


def flux(side: int) -> tiny.Built:
    """One double and one single block; (side / 4)^2 picture tokens beside 32 of text."""
    pipe, _ = tiny.flux()
    config = _sizes("flux1-dev", num_layers=1, num_single_layers=1)
    words = pipe.tokenizer
    clip = CLIPTextConfig(
        vocab_size=len(words), hidden_size=config["pooled_projection_dim"], intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=1, max_position_embeddings=words.model_max_length, eos_token_id=words.eos_token_id,
        bos_token_id=words.convert_tokens_to_ids("<bos>"), pad_token_id=words.pad_token_id,
    )  # fmt: skip
    t5 = T5Config(
        vocab_size=len(words), d_model=config["joint_attention_dim"], d_kv=8, d_ff=16, num_layers=1, num_heads=1
    )
    pipe.register_modules(
        transformer=FluxTransformer2DModel.from_config(config),
        vae=components.autoencoder(16),
        text_encoder=CLIPTextModel(clip),
        text_encoder_2=T5EncoderModel(t5),
    )
    return pipe, {"height": side, "width": side, "num_inference_steps": 2, "max_sequence_length": 32}


def wan(side: int) -> tiny.Built:
    """One block; 2 (side / 16)^2 tokens of five frames beside 512 of text, which Wan always pads to."""
    pipe, _ = tiny.wan()
    config = _sizes("wan2.1-t2v-14b", num_layers=1)
    umt5 = UMT5Config(
        vocab_size=len(pipe.tokenizer), d_model=config["text_dim"], d_kv=8, d_ff=16, num_layers=1, num_heads=1
    )
    pipe.register_modules(transformer=WanTransformer3DModel.from_config(config), text_encoder=UMT5EncoderModel(umt5))
    return pipe, {
        "height": side, "width": side, "num_frames": 5, "num_inference_steps": 2, "guidance_scale": 1.0,
        "max_sequence_length": 32,
    }  # fmt: skip


BUILDERS: dict[str, tuple[Callable[[int], tiny.Built], int]] = {"flux": (flux, 64), "wan": (wan, 256)}
"""With the picture's side."""


def build(name: str, folder: Path, side: int) -> None:
    """Write the pipeline, its weights in bfloat16."""
    torch.manual_seed(0)
    default, torch_default = torch.get_default_dtype(), torch.bfloat16
    torch.set_default_dtype(torch_default)
    try:
        pipe, call = BUILDERS[name][0](side)
    finally:
        torch.set_default_dtype(default)
    pipe.save_pretrained(folder)
    (folder / "sampling.json").write_text(json.dumps({"call": call}))


def quantize(model: Path, run: Path, threads: int) -> Context:
    """From the capture to the assembled folder, by the command line."""
    sets = [
        "compute.dtype=bfloat16", f"compute.threads={threads}", f"data.prompts=['{PROMPT}']", "data.batch=1",
        "capture.rows=256", "search.rollout_prompts=1", "search.width=1", "evaluate.prompts=['a blue square']",
    ]  # fmt: skip
    arguments = ["run", "--run-dir", str(run), "--model", str(model), "--executor", "inline"]
    arguments += ["--stages", "capture..assemble", *(word for each in sets for word in ("--set", each))]
    if code := zoo._main(arguments):
        raise SystemExit(code)
    return zoo._context(run)


def stages(context: Context) -> list[tuple[str, str]]:
    """What the markers say, as lines of a table."""
    survey = Survey.from_plain(context.manifest("capture").read("survey").value)
    lines = [("linears", f"{len(survey.layers)}, {sum(layer.size for layer in survey.layers) / 1e6:.0f} M")]
    widest = max(survey.layers, key=lambda layer: layer.in_features)
    tokens = max((layer.macs or 0) // layer.size for layer in survey.layers)
    lines.append(("tokens of a call", str(tokens)))

    def seconds(stage: str, prefix: str) -> list[dict[str, float]]:
        return [dict(m.seconds) for u, m in context.manifest(stage).markers().items() if u.startswith(prefix)]

    calls = len(survey.step_of_call)
    (forward,), (fisher,) = seconds("capture", "trajectory/"), seconds("fisher", "scores/")
    lines.append(("a forward", f"{forward['model'] / calls:.2f} s"))
    lines.append(("Fisher: forward and backward", f"{fisher['model'] / calls:.2f} s"))
    grams, solved = seconds("hessian", "gram/"), seconds("solve", "layer/")
    lines.append(("Gram sums", f"{sum(s['algebra'] for s in grams):.1f} s, {len(grams)} inputs"))
    lines.append(("solve", f"{sum(s['algebra'] for s in solved):.0f} s"))
    slowest = context.manifest("solve").read(f"layer/{widest.name}").seconds["algebra"]
    lines.append((f"  of it {widest.in_features} x {widest['out']}", f"{slowest:.0f} s"))
    search = seconds("search", "level/")
    lines.append(
        ("search, a simulated forward", f"{sum(s['model'] for s in search) / sum(s['calls'] for s in search):.2f} s")
    )
    (assembled,) = seconds("assemble", "model")
    lines.append(("pack and write", f"{assembled['total']:.1f} s"))
    size = context.manifest("assemble").read("model").value
    before, after = size["layer_bytes_bf16"], size["layer_bytes"]
    lines.append(("bytes of the linears", f"{before / 1e6:.0f} MB to {after / 1e6:.0f} MB, {before / after:.2f}x"))
    return lines


@torch.no_grad()
def forwards(model: Path, run: Path, repeats: int) -> list[tuple[str, str]]:
    """A call of the denoiser, quantized over bf16."""
    call = json.loads((model / "sampling.json").read_text())["call"]
    works: dict[str, Callable[[], Any]] = {}
    for name, folder in ((PLAIN, model), *((execution, run / "model") for execution in EXECUTIONS)):
        denoiser = Denoiser(str(folder.resolve()), dtype="bfloat16", device="cpu", call=call)
        arrived = denoiser.teleport(Conditions(prompts=(PROMPT,), seeds=(0,)), [])
        assert isinstance(arrived, Call)
        if name != PLAIN:
            runtime.execute(denoiser.transformer, name)
        works[name] = lambda of=denoiser, arrived=arrived: of.run(arrived)  # type: ignore[misc]
    taken = medians(works, repeats)
    return [("a call in bf16", f"{1000 * taken[PLAIN]:.0f} ms")] + [
        (f"  {name} over it", f"{taken[name] / taken[PLAIN]:.2f}") for name in EXECUTIONS
    ]


@click.command()
@click.option("--only", type=click.Choice(list(BUILDERS)), help="One of them.")
@click.option("--side", type=int, help="Side of the picture [default: 64 for flux, 256 for wan].")
@click.option("--threads", default=2, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), help="Keep the runs here; one that was stopped goes on.")
def main(only: str | None, side: int | None, threads: int, repeats: int, work: Path | None) -> None:
    """Print the tables."""
    torch.set_num_threads(threads)
    for name in [only] if only else list(BUILDERS):
        with tempfile.TemporaryDirectory() as scratch:
            below = (work or Path(scratch)) / name
            model, run = below / "model", below / "run"
            if not (model / "sampling.json").exists():
                build(name, model, side or BUILDERS[name][1])
            lines = [*stages(quantize(model, run, threads)), *forwards(model, run, repeats)]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        click.echo(name)
        for key, value in [*lines, ("memory at most, so far", f"{peak / 1e9:.1f} GB")]:
            click.echo(f"  {key:32} {value}")


if __name__ == "__main__":
    main()
