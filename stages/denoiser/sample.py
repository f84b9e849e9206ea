"""Draw pictures with a pipeline folder, full precision or quantized, and write them to a file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

import adatsq_pipe.stages.runtime  # noqa: F401  (registers the quantizer)
from adatsq_pipe.stages.denoiser.conditions import Conditions
from adatsq_pipe.stages.denoiser.denoiser import Denoiser

FRAME_MILLISECONDS = 120
_GAP = 2


def draw(
    folder: Path, prompts: tuple[str, ...], *, seed: int, call: dict[str, object], device: str, dtype: str
) -> npt.NDArray[np.float32]:
    """One picture `[prompts, H, W, 3]` (or video `[prompts, frames, H, W, 3]`) per prompt, values in [0, 1].

    Prompt i has the seed `seed + i`, drawn on the CPU: the same picture on every device, up to float order.
    """
    seeds = tuple(seed + i for i in range(len(prompts)))
    denoiser = Denoiser(str(folder), dtype=dtype, device=device, call=call)
    run = denoiser.record(Conditions(prompts=prompts, seeds=seeds), decode=True, keep=False)
    pictures: npt.NDArray[np.float32] = run.pictures.float().numpy()
    return pictures


def save(pictures: npt.NDArray[np.float32], path: Path, *, scale: int) -> None:
    """Write pictures side by side, each pixel `scale` times as large; a video as an animated GIF.

    Raises OSError or ValueError if the path or the format cannot be written.
    """
    frames = pictures[:, None] if pictures.ndim == 4 else pictures
    sheets = [_sheet(frames[:, i], scale) for i in range(frames.shape[1])]
    if len(sheets) == 1:
        sheets[0].save(path)
    elif path.suffix.lower() == ".gif":
        sheets[0].save(path, save_all=True, append_images=sheets[1:], duration=FRAME_MILLISECONDS, loop=0)
    else:
        rows = np.concatenate([np.asarray(sheet) for sheet in sheets])
        Image.fromarray(rows).save(path)


def _sheet(pictures_NHW3: npt.NDArray[np.float32], scale: int) -> Image.Image:
    count, height, width, _ = pictures_NHW3.shape
    columns = min(count, max(1, math.ceil(math.sqrt(count))) if count > 4 else count)
    rows = math.ceil(count / columns)
    sheet = np.ones((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), np.float32)
    for i, picture in enumerate(pictures_NHW3):
        top, left = i // columns * (height + _GAP), i % columns * (width + _GAP)
        sheet[top : top + height, left : left + width] = picture
    small = Image.fromarray((sheet.clip(0, 1) * 255).round().astype(np.uint8))
    return small.resize((small.width * scale, small.height * scale), Image.Resampling.NEAREST)
