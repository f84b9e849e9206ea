"""Geometry: how large one call of a denoiser is, from the arguments of the pipeline's call and the model's configs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import diffusers

from adatsq_pipe.pipeline.errors import ConfigError
from adatsq_pipe.pipeline.estimate.subject import Subject
from adatsq_pipe.stages.architecture import support

SIDE = 1024
"""Pixels along an edge where neither the call, the pipeline nor a config says it."""
FRAMES = 81
TEXT = 512
STEPS = 50
SCALE = 8
"""Pixels of one number of the latents along an edge, where no autoencoder says it."""
TEMPORAL = 4
"""Frames of one number of the latents, likewise."""
DEEPER = {"LTXPipeline": (32, 8), "SanaPipeline": (32, 1)}
"""Pipelines whose autoencoders make more of both of one number."""
HALVES = {"DiTPipeline": 1.0, "ZImagePipeline": 0.0}
"""Pipelines that put the guided and the unguided half into one call, and the guidance scale above which they do; all
others that are not listed below do so above 1."""
TWICE = ("WanPipeline", "QwenImagePipeline", "CosmosPipeline", "HunyuanImagePipeline", "ChromaPipeline")
"""Pipelines that call their denoiser twice a step where they are guided."""
EMBEDDED = ("FluxPipeline", "HunyuanVideoPipeline")
"""Pipelines whose guidance scale is an input of the denoiser: they are guided twice by true_cfg_scale alone."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """One run of the pipeline, of one caption."""

    height: int
    width: int
    frames: int
    """Frames of a clip; 0 of a picture."""
    latents: tuple[int, ...]
    """[channels, height, width], or [channels, frames, height, width] of clips."""
    text: int
    """Tokens of a caption; 0 where the pipeline takes labels."""
    steps: int
    halves: int
    """Rows of one call for a caption: 2 where guided and unguided halves share a call."""
    calls_per_step: int
    steps_of: Mapping[str, int] = field(default_factory=dict)
    """Steps of every denoiser, where there are several."""
    assumed: tuple[str, ...] = ()

    @property
    def area(self) -> int:
        """Places of the latents, over frames."""
        places = 1
        for size in self.latents[1:]:
            places *= size
        return places

    @property
    def calls(self) -> int:
        """Denoiser calls of one run."""
        return self.steps * self.calls_per_step

    @property
    def pixels(self) -> int:
        """Numbers in a picture or clip, three channels."""
        return 3 * self.height * self.width * max(1, self.frames)


def geometry_of(subject: Subject, call: Mapping[str, Any]) -> Geometry:
    """The geometry of a run of `subject` whose call has these arguments. Raises ConfigError for sizes that are none."""
    config, assumed = next(iter(subject.denoisers.values())), list[str]()
    spatial, temporal = _scales(subject, assumed)
    clips = _makes_clips(subject, config)
    height, width = (_side(subject, config, call, name, spatial, assumed) for name in ("height", "width"))
    frames = int(call.get("num_frames") or subject.default("num_frames") or (FRAMES if clips else 0)) if clips else 0
    channels = int(subject.vae.get("latent_channels") or subject.vae.get("z_dim") or _channels(config))
    places = (height // spatial, width // spatial)
    latents = (channels, (frames - 1) // temporal + 1, *places) if clips else (channels, *places)
    if not all(latents):
        raise ConfigError(f"a picture of {height} x {width} pixels has no latents; raise model.call.height and width")
    guided = _guided(subject, call)
    steps = int(call.get("num_inference_steps") or subject.default("num_inference_steps") or STEPS)
    found = Geometry(
        height=height,
        width=width,
        frames=frames,
        latents=latents,
        text=_text(subject, call, assumed),
        steps=steps,
        halves=2 if guided and subject.pipeline not in TWICE else 1,
        calls_per_step=2 if guided and subject.pipeline in TWICE else 1,
        assumed=tuple(assumed),
    )
    return replace(found, **_divided(subject, found)) if len(subject.denoisers) > 1 else found


def _scales(subject: Subject, assumed: list[str]) -> tuple[int, int]:
    """Pixels and frames of one number of the latents."""
    vae = subject.vae
    if "scale_factor_spatial" in vae:
        return int(vae["scale_factor_spatial"]), int(vae.get("scale_factor_temporal") or TEMPORAL)
    if vae.get("spatial_compression_ratio"):
        return int(vae["spatial_compression_ratio"]), int(vae.get("temporal_compression_ratio") or TEMPORAL)
    if "temperal_downsample" in vae:
        return 2 ** len(vae["temperal_downsample"]), 2 ** sum(map(bool, vae["temperal_downsample"]))
    if "block_out_channels" in vae:
        return 2 ** (len(vae["block_out_channels"]) - 1), TEMPORAL
    spatial, temporal = DEEPER.get(subject.pipeline, (SCALE, TEMPORAL))
    assumed.append(f"no autoencoder says it: one number of the latents covers {spatial} x {spatial} pixels")
    return spatial, temporal


def _makes_clips(subject: Subject, config: Mapping[str, Any]) -> bool:
    return subject.default("num_frames") is not None or "3D" in str(config.get("_class_name", ""))


def _side(
    subject: Subject, config: Mapping[str, Any], call: Mapping[str, Any], name: str, spatial: int, assumed: list[str]
) -> int:
    """Pixels along an edge: the call's, the pipeline's default, or the config's sample."""
    if call.get(name) or subject.default(name):
        return int(call.get(name) or subject.default(name))
    own = config.get(f"sample_{name}") or config.get("sample_size")
    if match := re.search(r"default_sample_size = (\d+)", subject.source):
        return int(match[1]) * spatial
    if match := re.search(rf"{name} = {name} or (\d+)", subject.source):
        return int(match[1])
    if isinstance(own, int):
        return own * spatial
    assumed.append(f"nothing says the {name}: {SIDE} pixels")
    return SIDE


def _channels(config: Mapping[str, Any]) -> int:
    """Channels of the latents by the denoiser's input, which packs 2 x 2 of them where its own patch is 1."""
    channels = int(config.get("in_channels") or 4)
    return channels // 4 if packs(config) else channels


def packs(config: Mapping[str, Any]) -> bool:
    """Whether the pipeline puts 2 x 2 latents into one token before the denoiser sees them."""
    return config.get("_class_name") in (
        "FluxTransformer2DModel", "QwenImageTransformer2DModel", "ChromaTransformer2DModel",
    )  # fmt: skip


def _guided(subject: Subject, call: Mapping[str, Any]) -> bool:
    """Whether each step denoises a caption with and without its prompt."""
    names = ("true_cfg_scale",) if subject.pipeline in (*EMBEDDED, "QwenImagePipeline") else ("guidance_scale",)
    scale = next((call.get(name) for name in names if call.get(name) is not None), None)
    scale = subject.default(names[0]) if scale is None else scale
    if subject.pipeline == "QwenImagePipeline" and not call.get("negative_prompt"):
        return False  # it is guided only beside a negative prompt
    if scale is None:
        return False
    return float(scale) > HALVES.get(subject.pipeline, 1.0)


def _text(subject: Subject, call: Mapping[str, Any], assumed: list[str]) -> int:
    if (subject.index and support.takes_labels(subject.index)) or subject.pipeline == "DiTPipeline":
        return 0
    asked = call.get("max_sequence_length") or subject.default("max_sequence_length")
    if not asked:
        assumed.append(f"nothing says how long captions are: {TEXT} tokens")
    return int(asked or TEXT)


def _divided(subject: Subject, whole: Geometry) -> dict[str, Any]:
    """How the steps are divided among several denoisers: at the model's boundary, of its scheduler's timesteps."""
    names, boundary = list(subject.denoisers), subject.index.get("boundary_ratio")
    kind = getattr(diffusers, str(subject.scheduler.get("_class_name", "")), None)
    if len(names) == 2 and isinstance(boundary, int | float) and kind is not None:
        scheduler = kind.from_config(dict(subject.scheduler))
        scheduler.set_timesteps(whole.steps)
        early = sum(float(t) >= boundary * scheduler.config.num_train_timesteps for t in scheduler.timesteps)
        return {"steps_of": {names[0]: int(early), names[1]: whole.steps - int(early)}}
    share = -(-whole.steps // len(names))
    left = {name: min(share, max(0, whole.steps - i * share)) for i, name in enumerate(names)}
    said = f"nothing says which steps each of {', '.join(names)} takes: they share them evenly"
    return {"steps_of": left, "assumed": (*whole.assumed, said)}
