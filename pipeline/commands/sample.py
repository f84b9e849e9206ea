"""`sample`: pictures from a pipeline folder, full precision or quantized."""

from __future__ import annotations

from pathlib import Path

import click
from PIL import Image

from adatsq_pipe.pipeline import config as configuration
from adatsq_pipe.pipeline.captions import in_the_world
from adatsq_pipe.pipeline.commands.layout import print_json
from adatsq_pipe.pipeline.commands.shell import example, json_option, user_errors
from adatsq_pipe.pipeline.compute import chosen
from adatsq_pipe.pipeline.devices import check_here
from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.toml_tables import as_utf_8
from adatsq_pipe.stages.base import gpus
from adatsq_pipe.stages.base.settings import AUTO, DEVICES, DTYPES, ComputeSettings, is_device


@click.command(
    short_help="Draw pictures from a pipeline folder.",
    epilog=example('sample scenes/flux-dev --prompt "a red circle" --out picture.png'),
)
@click.argument("model", default="")
@click.option("--prompt", "prompts", multiple=True, required=True, help="Caption to draw; repeatable.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Picture file to write: .png, or .gif for a video.",
)
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--steps", type=int, help="Denoising steps [default: the number in its sampling.json, or diffusers' own]."
)
@click.option("--device", default=AUTO, show_default=True, help="cpu, cuda or cuda:N; auto = cuda where there is one.")
@click.option(
    "--dtype",
    type=click.Choice([AUTO, *DTYPES]),
    default=AUTO,
    show_default=True,
    help="auto = float32 on a CPU, else the stored one, bfloat16 for a quantized model.",
)
@click.option(
    "--variant", type=click.Choice(["fp16", "bf16"]), help="Take these weights of MODEL, where a component has them."
)
@click.option("--scale", default=8, show_default=True, help="Enlarge each pixel this many times.")
@json_option
@user_errors
def sample(
    model: str,
    prompts: tuple[str, ...],
    out: Path,
    seed: int,
    steps: int | None,
    device: str,
    dtype: str,
    variant: str | None,
    scale: int,
    as_json: bool,
) -> None:
    """Draw pictures from MODEL.

    MODEL is a pipeline folder, full precision or quantized, org/name of the hub, or a built-in name such as
    scenes/flux-dev.
    """
    prompts = tuple(map(as_utf_8, prompts))
    if not is_device(device):
        raise ConfigError(f"--device {device!r} is none; it must be {DEVICES}")
    folder = configuration.model_folder(model, variant or "")
    recommended = configuration.sampling(folder)
    if recommended.get("world"):
        in_the_world(prompts, recommended["world"], "--prompt")
    if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise ConfigError(f"--out {out}: {out.suffix or 'no ending'} is not a picture format; use .png or .gif")
    if not out.resolve().parent.is_dir():
        raise ConfigError(f"--out {out}: folder {out.resolve().parent} does not exist; create it first")
    asked = ComputeSettings(device=device, dtype=dtype)
    taken, _ = chosen(asked, folder, {}, gpus.visible_gpus)
    check_here(taken.device, f"--device {device}", "use --device cpu")
    from adatsq_pipe.stages.denoiser import sample  # imports torch, once the options are checked

    call = {**recommended.get("call", {}), **({"num_inference_steps": steps} if steps else {})}
    pictures = sample.draw(folder, prompts, seed=seed, call=call, device=taken.device, dtype=taken.dtype)
    sample.save(pictures, out, scale=scale)
    if as_json:
        print_json({"file": str(out), "pictures": len(prompts), "prompts": prompts, "seed": seed, "model": str(folder)})
        return
    click.echo(f"{out}: {len(prompts)} pictures from {folder}")
