"""Tiny pipelines that draw videos from pictures or from videos, of which a manifest gives the frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers import (
    ChronoEditPipeline,
    ChronoEditTransformer3DModel,
    CogVideoXFunControlPipeline,
    CogVideoXVideoToVideoPipeline,
    Cosmos2_5_PredictBasePipeline,
    Cosmos2VideoToWorldPipeline,
    CosmosVideoToWorldPipeline,
    HeliosPipeline,
    HunyuanSkyreelsImageToVideoPipeline,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoImageToVideoPipeline,
    Kandinsky5I2VPipeline,
    LTX2ImageToVideoPipeline,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    LucyEditPipeline,
    MotifVideoImage2VideoPipeline,
    SanaImageToVideoPipeline,
    SkyReelsV2DiffusionForcingImageToVideoPipeline,
    SkyReelsV2DiffusionForcingVideoToVideoPipeline,
    SkyReelsV2ImageToVideoPipeline,
    WanAnimatePipeline,
    WanAnimateTransformer3DModel,
    WanImageToVideoPipeline,
    WanVideoToVideoPipeline,
)
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.tiny import wan
from tests.zoo.latest import _unguarded as unguarded
from tests.zoo.latest import cosmos, cosmos2, cosmos25
from tests.zoo.latest_videos import helios, hunyuan_video15, kandinsky6, ltx2, motif
from tests.zoo.newer import kandinsky5_video, wan_vace
from tests.zoo.parts import T5, WIDTH, Built, words
from tests.zoo.videos import cogvideox, hunyuan_video, ltx, sana_video, skyreels, wan22
from tests.zoo.with_pictures import IMAGE, Given, again, plainly

VIDEO = {"video": 5}
_CHANGED: dict[str, object] = {"num_inference_steps": 3, "strength": 0.8}
_WAN: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 36, "text_dim": WIDTH, "freq_dim": 32,
    "ffn_dim": 32, "num_layers": 1, "rope_max_seq_len": 32, "image_dim": WIDTH,
}  # fmt: skip


def _eye(kind: Any = CLIPVisionModel) -> dict[str, Any]:
    """What reads a picture, as most have it."""
    model = kind(
        CLIPVisionConfig(
            hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, image_size=16,
            patch_size=8, projection_dim=WIDTH,
        )
    )  # fmt: skip
    eyes = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return {"image_encoder": model, "image_processor": eyes}


def _siglip(width: int, patches: int = 2) -> dict[str, Any]:
    side = 4 * patches
    model = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=width, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, image_size=side,
            patch_size=4,
        )
    )  # fmt: skip
    return {
        "image_encoder": model,
        "feature_extractor": SiglipImageProcessorPil(size={"height": side, "width": side}),
    }


def wan_moved() -> Given:
    """Wan 2.1."""
    built = wan()
    return again(WanImageToVideoPipeline, built, {"in_channels": 36, "image_dim": WIDTH}, **_eye()), built[1], IMAGE


def wan_between() -> Given:
    """Wan 2.1 told the last picture too."""
    built = wan()
    sizes = {"in_channels": 36, "image_dim": WIDTH, "pos_embed_seq_len": 2 * 5}
    return again(WanImageToVideoPipeline, built, sizes, **_eye()), built[1], {"image": 0, "last_image": 0}


def wan22_moved() -> Given:
    """Two denoisers, no encoder of pictures."""
    built = wan22()
    second = again(WanImageToVideoPipeline, built, {"in_channels": 36}).transformer
    pipe = again(WanImageToVideoPipeline, built, {"in_channels": 36}, transformer_2=second, boundary_ratio=0.9)
    return pipe, built[1], IMAGE


def wan22_small_moved() -> Given:
    """As the Wan 2.2 of 5B parameters: each token has a timestep, which is zero in the picture that is given."""
    built = wan()
    return again(WanImageToVideoPipeline, built, expand_timesteps=True), built[1], IMAGE


def wan_vace_followed() -> Given:
    return *wan_vace(), {"video": 5, "mask": 5, "reference_images": 1}


def wan_animate() -> Given:
    """Follows a pose and a face."""
    transformer = WanAnimateTransformer3DModel(
        **_WAN, motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8}, motion_encoder_size=16, motion_style_dim=8,
        motion_dim=4, motion_encoder_dim=16, face_encoder_hidden_dim=16, face_encoder_num_heads=2,
        inject_face_latents_blocks=1,
    )  # fmt: skip
    pipe = again(WanAnimatePipeline, wan(), transformer=transformer, **_eye())
    call: dict[str, object] = {
        "height": 16, "width": 16, "segment_frame_length": 5, "num_inference_steps": 2, "max_sequence_length": 16,
        "prev_segment_conditioning_frames": 1,
    }  # fmt: skip
    return pipe, call, {"image": 0, "pose_video": 5, "face_video": 5}


def lucy_edit() -> Given:
    built = wan()
    return again(LucyEditPipeline, built, {"in_channels": 32}), built[1], VIDEO


def chrono_edit() -> Given:
    transformer = ChronoEditTransformer3DModel(**_WAN)
    built = wan()
    return again(ChronoEditPipeline, built, transformer=transformer, **_eye()), built[1], IMAGE


def skyreels_moved() -> Given:
    built = skyreels()
    eye = _eye(CLIPVisionModelWithProjection)
    pipe = again(SkyReelsV2ImageToVideoPipeline, built, {"in_channels": 36, "image_dim": WIDTH}, **eye)
    return pipe, built[1], IMAGE


def cogvideox_control() -> Given:
    built = cogvideox()
    call = {name: value for name, value in built[1].items() if name != "num_frames"}
    return again(CogVideoXFunControlPipeline, built, {"in_channels": 8}), call, {"control_video": 5}


def hunyuan_skyreels() -> Given:
    built = hunyuan_video()
    return again(HunyuanSkyreelsImageToVideoPipeline, built, {"in_channels": 8}), built[1], IMAGE


def hunyuan_video15_moved() -> Given:
    built = hunyuan_video15()
    pipe = again(HunyuanVideo15ImageToVideoPipeline, built, **_siglip(8, 27))
    return pipe, {"num_frames": 5, "num_inference_steps": 2}, IMAGE


def framepack() -> Given:
    built = hunyuan_video()
    transformer = HunyuanVideoFramepackTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, text_embed_dim=WIDTH, pooled_projection_dim=T5, rope_axes_dim=(4, 6, 6),
        image_condition_type=None, has_image_proj=True, image_proj_dim=WIDTH, has_clean_x_embedder=True,
    )  # fmt: skip
    pipe = again(HunyuanVideoFramepackPipeline, built, transformer=transformer, **_siglip(WIDTH))
    return pipe, {**built[1], "height": 32, "width": 32, "num_frames": 9, "latent_window_size": 3}, IMAGE


def kandinsky5_moved() -> Given:
    """Draws nothing but NaN where it has no more than four latent frames: its first are made like the others."""
    built = kandinsky5_video()
    call = {**built[1], "num_frames": 21}
    return again(Kandinsky5I2VPipeline, built, {"visual_cond": True, "in_visual_dim": 4}), call, IMAGE


def hunyuan_moved() -> Given:
    """Its language model sees the picture too. What stands around the prompt is cut off by counting."""
    pipe, call = hunyuan_video()
    reader = words()
    reader.add_tokens(["<image>", "<|end_header_id|>"])
    text, eye = pipe.text_encoder.config, _eye()
    text.vocab_size = len(reader)
    config = LlavaConfig(text_config=text, vision_config=eye["image_encoder"].config, image_token_index=len(words()))
    config.pad_token_id = reader.pad_token_id
    around = {
        "template": "<|end_header_id|> <image> <|end_header_id|> {} <|end_header_id|>", "crop_start": 3,
        "image_emb_start": 1, "image_emb_end": 5, "image_emb_len": 4,
    }  # fmt: skip
    made = again(
        HunyuanVideoImageToVideoPipeline, (pipe, call), {"in_channels": 9, "image_condition_type": "latent_concat"},
        text_encoder=LlavaForConditionalGeneration(config), tokenizer=reader, image_processor=eye["image_processor"],
    )  # fmt: skip
    return made, {**call, "prompt_template": around}, IMAGE


def kandinsky6_moved() -> Given:
    from diffusers import Kandinsky6TI2VAPipeline  # since 0.42

    built = kandinsky6()
    return again(Kandinsky6TI2VAPipeline, built, {"visual_token_type_num_embeddings": 2}), built[1], IMAGE


def motif_moved() -> Given:
    built = motif()
    eyes = SiglipImageProcessorPil(size={"height": 14, "width": 14})
    return (
        again(MotifVideoImage2VideoPipeline, built, {"image_embed_dim": WIDTH}, feature_extractor=eyes),
        built[1],
        IMAGE,
    )


def cosmos_moved() -> Given:
    built = cosmos()
    sizes = {"in_channels": 17, "concat_padding_mask": False}
    return again(unguarded(CosmosVideoToWorldPipeline), built, sizes), {**built[1], "num_frames": 9}, IMAGE


def cosmos2_moved() -> Given:
    built = cosmos2()
    return (
        again(unguarded(Cosmos2VideoToWorldPipeline), built, {"in_channels": 17}),
        {**built[1], "num_frames": 9},
        IMAGE,
    )


def _frames_told(kind: type, source: Callable[[], Built], given: dict[str, int]) -> Callable[[], Given]:
    """What takes as many frames as it is given."""

    def build() -> Given:
        built = source()
        call = {name: value for name, value in built[1].items() if name != "num_frames"}
        return again(kind, built), {**call, **_CHANGED}, given

    return build


GIVEN: dict[str, Callable[[], Given]] = {
    "wan-image": wan_moved,
    "wan-between": wan_between,
    "wan2.2-image": wan22_moved,
    "wan2.2-5b-image": wan22_small_moved,
    "wan-video": _frames_told(WanVideoToVideoPipeline, wan, VIDEO),
    "wan-vace-followed": wan_vace_followed,
    "wan-animate": wan_animate,
    "lucy-edit": lucy_edit,
    "chrono-edit": chrono_edit,
    "skyreels-v2-image": skyreels_moved,
    "skyreels-v2-forcing-image": plainly(SkyReelsV2DiffusionForcingImageToVideoPipeline, skyreels, IMAGE),
    "cogvideox-video": _frames_told(CogVideoXVideoToVideoPipeline, cogvideox, VIDEO),
    "cogvideox-control": cogvideox_control,
    "ltx-image": plainly(LTXImageToVideoPipeline, ltx, IMAGE),
    "ltx2-image": plainly(LTX2ImageToVideoPipeline, ltx2, IMAGE, image_crf=0),
    "hunyuan-skyreels": hunyuan_skyreels,
    "hunyuan-video1.5-image": hunyuan_video15_moved,
    "framepack": framepack,
    "hunyuan-video-image": hunyuan_moved,
    "ltx-condition-image": plainly(LTXConditionPipeline, ltx, IMAGE),
    "ltx-condition-video": plainly(LTXConditionPipeline, ltx, {"video": 9}),
    "kandinsky6-image": kandinsky6_moved,
    "cosmos2.5-video": plainly(Cosmos2_5_PredictBasePipeline, cosmos25, VIDEO),
    "skyreels-v2-forcing-video": plainly(
        SkyReelsV2DiffusionForcingVideoToVideoPipeline,
        skyreels,
        VIDEO,
        num_frames=9,
        overlap_history=1,
        base_num_frames=9,
    ),
    "helios-image": plainly(HeliosPipeline, helios, IMAGE),
    "sana-video-image": plainly(SanaImageToVideoPipeline, sana_video, IMAGE),
    "kandinsky5-image": kandinsky5_moved,
    "motif-video-image": motif_moved,
    "cosmos-image": cosmos_moved,
    "cosmos2-image": cosmos2_moved,
}
