"""Tiny pipelines that draw pictures from pictures: to change, fill, follow or refer to.

A builder also says what the manifest gives: arguments of the call, each with how many pictures (0: one by itself).
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from diffusers import (
    AutoencoderKLQwenImage,
    BriaFiboEditPipeline,
    ChromaImg2ImgPipeline,
    CogView4ControlPipeline,
    Flux2KleinInpaintPipeline,
    FluxControlImg2ImgPipeline,
    FluxControlInpaintPipeline,
    FluxControlNetImg2ImgPipeline,
    FluxControlNetInpaintPipeline,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxFillPipeline,
    FluxInpaintPipeline,
    FluxKontextInpaintPipeline,
    LongCatImageEditPipeline,
    QwenImageControlNetModel,
    QwenImageControlNetPipeline,
    QwenImageEditInpaintPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    QwenImageLayeredPipeline,
    SanaControlNetModel,
    SanaControlNetPipeline,
    SanaSprintImg2ImgPipeline,
    SD3ControlNetModel,
    StableDiffusion3ControlNetInpaintingPipeline,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3PAGImg2ImgPipeline,
    ZImageControlNetModel,
    ZImageControlNetPipeline,
    ZImageImg2ImgPipeline,
    ZImageInpaintPipeline,
    ZImageOmniPipeline,
)
from transformers import Siglip2ImageProcessorPil

from adatsq_pipe.stages.scenes.train import components
from tests.tiny import flux, z_image
from tests.zoo.images import chroma, sana, sana_sprint, sd3, sd3_pag
from tests.zoo.language import cogview4, flux2_klein, longcat, qwen_image
from tests.zoo.latest import flux_kontext, z_image_omni
from tests.zoo.newer import bria_fibo, flux2
from tests.zoo.parts import T5, WIDTH, Built, autoencoder_qwen, fill, qwen_vl, reader

Given = tuple[Any, dict[str, object], dict[str, int]]

IMAGE, MASKED, CONTROL = {"image": 0}, {"image": 0, "mask_image": 0}, {"control_image": 0}
_CHANGED: dict[str, object] = {"num_inference_steps": 3, "strength": 0.8}
_LARGER: dict[str, object] = {"height": 64, "width": 64}


def _config(part: Any) -> dict[str, Any]:
    return {key: value for key, value in part.config.items() if not key.startswith("_")}


def again(kind: type, built: Built, sizes: dict[str, Any] | None = None, **more: Any) -> Any:
    """A pipeline of `kind` from the parts of another; with `sizes`, its transformer is made anew."""
    pipe = built[0]
    parts = {name: part for name, part in pipe.components.items() if name in inspect.signature(kind).parameters}
    if sizes is not None:
        parts["transformer"] = type(pipe.transformer)(**{**_config(pipe.transformer), **sizes})
        fill(parts["transformer"])
    return kind(**{**parts, **more})


def plainly(kind: type, source: Callable[[], Built], given: dict[str, int], **call: object) -> Callable[[], Given]:
    """What takes the parts of another as they are."""

    def build() -> Given:
        built = source()
        return again(kind, built), {**built[1], **call}, given

    return build


def flux_kontext_shown() -> Given:
    pipe, call = flux_kontext()
    return pipe, {**call, "_auto_resize": False}, IMAGE


def flux_fill() -> Given:
    built = flux()
    return again(FluxFillPipeline, built, {"in_channels": 48, "out_channels": 16}), built[1], MASKED


def flux_control_changed() -> Given:
    built = flux()
    pipe = again(FluxControlImg2ImgPipeline, built, {"in_channels": 32, "out_channels": 16})
    return pipe, {**built[1], **_CHANGED}, IMAGE | CONTROL


def flux_control_filled() -> Given:
    built = flux()
    pipe = again(FluxControlInpaintPipeline, built, {"in_channels": 32, "out_channels": 16})
    return pipe, {**built[1], **_CHANGED}, MASKED | CONTROL


def _flux_net() -> FluxControlNetModel:
    net = FluxControlNetModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=T5, pooled_projection_dim=T5, guidance_embeds=True, axes_dims_rope=[4, 6, 6],
    )  # fmt: skip
    fill(net)
    return net


def _flux_with_net(kind: type, given: dict[str, int], **call: object) -> Callable[[], Given]:
    def build() -> Given:
        built = flux()
        return again(kind, built, controlnet=_flux_net()), {**built[1], **call}, given

    return build


_SD3_NET: dict[str, Any] = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 1, "attention_head_dim": 8,
    "num_attention_heads": 4, "joint_attention_dim": T5, "caption_projection_dim": 32, "pooled_projection_dim": T5,
    "out_channels": 4, "pos_embed_max_size": 16,
}  # fmt: skip


def sd3_net() -> Given:
    built = sd3()
    net = SD3ControlNetModel(**_SD3_NET)
    fill(net)
    return again(StableDiffusion3ControlNetPipeline, built, controlnet=net), built[1], CONTROL


def sd3_filled() -> Given:
    """Asks for one of two numbers of channels."""
    built = sd3()
    pipe = again(
        StableDiffusion3InpaintPipeline, built, {"in_channels": 16, "out_channels": 16}, vae=components.autoencoder(16)
    )
    return pipe, {**built[1], **_CHANGED}, MASKED


def qwen_image_net() -> Given:
    built = qwen_image()
    net = QwenImageControlNetModel(
        in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    fill(net)
    return again(QwenImageControlNetPipeline, built, controlnet=net), built[1], CONTROL


def flux2_shown() -> Given:
    pipe, call = flux2()
    return pipe, {**call, **_LARGER}, {"image": 2}


def flux2_klein_shown() -> Given:
    pipe, call = flux2_klein()
    return pipe, {**call, **_LARGER}, IMAGE


def _small(kind: type) -> type:
    """The class, which takes every picture at about a million pixels: at 64 by 64, from now on in this process."""
    module: Any = importlib.import_module(kind.__module__)
    real = module.calculate_dimensions
    module.calculate_dimensions = lambda area, ratio: real(64 * 64, ratio)
    return kind


def _read_too(kind: type, source: Callable[[], Built], given: dict[str, int], **call: object) -> Callable[[], Given]:
    """What has its pictures read with its prompt."""

    def build() -> Given:
        pipe, base = source()
        both = reader()
        pictured = {"processor": both, "text_processor": both, "tokenizer": both.tokenizer}
        taken = {name: part for name, part in pictured.items() if name in inspect.signature(kind).parameters}
        made = again(_small(kind), (pipe, base), text_encoder=qwen_vl(seeing=True), **taken)
        known = inspect.signature(kind.__call__).parameters
        return made, {**{name: value for name, value in base.items() if name in known}, **call}, given

    return build


def z_image_net() -> Given:
    """Its net takes parts of the transformer for its own."""
    built = z_image()
    net = ZImageControlNetModel(
        control_layers_places=[0], control_refiner_layers_places=[0], control_in_dim=16,
        add_control_noise_refiner="control_noise_refiner", dim=32, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
    )  # fmt: skip
    fill(net)
    return again(ZImageControlNetPipeline, built, controlnet=net), built[1], CONTROL


def sana_net() -> Given:
    built = sana()
    net = SanaControlNetModel(
        in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=16,
        num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=WIDTH,
        sample_size=32,
    )  # fmt: skip
    fill(net)
    return again(SanaControlNetPipeline, built, controlnet=net), built[1], CONTROL


def sd3_net_filled() -> Given:
    built = sd3()
    net = SD3ControlNetModel(**_SD3_NET, extra_conditioning_channels=1)
    fill(net)
    pipe = again(StableDiffusion3ControlNetInpaintingPipeline, built, controlnet=net)
    return pipe, built[1], {"control_image": 0, "control_mask": 0}


def qwen_image_layered() -> Given:
    """Takes pictures apart, that have transparency; draws the layers."""
    pipe, call = qwen_image()
    vae = AutoencoderKLQwenImage(**{**_config(autoencoder_qwen(8)), "input_channels": 4})
    sizes = {"in_channels": 32, "out_channels": 8, "use_additional_t_cond": True, "use_layer3d_rope": True}
    made = again(_small(QwenImageLayeredPipeline), (pipe, call), sizes, vae=vae, processor=reader())
    return made, {"num_inference_steps": 2, "max_sequence_length": 64, "layers": 2, "resolution": 640}, IMAGE


def z_image_omni_shown() -> Given:
    """Has its pictures in bfloat16 whatever it is loaded in, so that it runs in that alone."""
    built = z_image_omni()
    eyes = Siglip2ImageProcessorPil(patch_size=4, max_num_patches=16)
    return again(ZImageOmniPipeline, built, siglip_processor=eyes), {**built[1], **_LARGER}, IMAGE


def bria_fibo_edit() -> Given:
    built = bria_fibo()
    return again(BriaFiboEditPipeline, built), built[1], {"image": 2}


def cogview4_control() -> Given:
    built = cogview4()
    return again(CogView4ControlPipeline, built, {"in_channels": 8}), built[1], CONTROL


GIVEN: dict[str, Callable[[], Given]] = {
    "flux-kontext-shown": flux_kontext_shown,
    "flux-kontext-filled": plainly(FluxKontextInpaintPipeline, flux, MASKED, _auto_resize=False, max_area=256),
    "flux-fill": flux_fill,
    "flux-inpaint": plainly(FluxInpaintPipeline, flux, MASKED, **_CHANGED),
    "flux-control-img2img": flux_control_changed,
    "flux-control-inpaint": flux_control_filled,
    "flux-controlnet": _flux_with_net(FluxControlNetPipeline, CONTROL),
    "flux-controlnet-img2img": _flux_with_net(FluxControlNetImg2ImgPipeline, IMAGE | CONTROL, **_CHANGED),
    "flux-controlnet-inpaint": _flux_with_net(FluxControlNetInpaintPipeline, MASKED | CONTROL, **_CHANGED),
    "sd3-controlnet": sd3_net,
    "sd3-img2img": plainly(StableDiffusion3Img2ImgPipeline, sd3, IMAGE, **_CHANGED),
    "sd3-inpaint": sd3_filled,
    "sd3-pag-img2img": plainly(StableDiffusion3PAGImg2ImgPipeline, sd3_pag, IMAGE, **_CHANGED),
    "qwen-image-img2img": plainly(QwenImageImg2ImgPipeline, qwen_image, IMAGE, **_CHANGED),
    "qwen-image-inpaint": plainly(QwenImageInpaintPipeline, qwen_image, MASKED, **_CHANGED),
    "qwen-image-controlnet": qwen_image_net,
    "z-image-img2img": plainly(ZImageImg2ImgPipeline, z_image, IMAGE, **_CHANGED),
    "z-image-inpaint": plainly(ZImageInpaintPipeline, z_image, MASKED, **_CHANGED),
    "chroma-img2img": plainly(ChromaImg2ImgPipeline, chroma, IMAGE, **_CHANGED),
    "flux2-shown": flux2_shown,
    "flux2-klein-shown": flux2_klein_shown,
    "flux2-klein-inpaint": plainly(Flux2KleinInpaintPipeline, flux2_klein, MASKED, **_CHANGED, **_LARGER),
    "cogview4-control": cogview4_control,
    "qwen-image-edit": _read_too(QwenImageEditPipeline, qwen_image, IMAGE),
    "qwen-image-edit-plus": _read_too(QwenImageEditPlusPipeline, qwen_image, {"image": 2}),
    "qwen-image-edit-inpaint": _read_too(QwenImageEditInpaintPipeline, qwen_image, MASKED, **_CHANGED),
    "longcat-edit": _read_too(LongCatImageEditPipeline, longcat, IMAGE),
    "sana-controlnet": sana_net,
    "sana-sprint-img2img": plainly(SanaSprintImg2ImgPipeline, sana_sprint, IMAGE, strength=0.8),
    "bria-fibo-edit": bria_fibo_edit,
    "sd3-controlnet-inpaint": sd3_net_filled,
    "qwen-image-layered": qwen_image_layered,
    "z-image-omni-shown": z_image_omni_shown,
    "z-image-controlnet": z_image_net,
}
