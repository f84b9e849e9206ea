"""The grid of a weight: min-max, or the range of every row or group clipped where that errs least.

Source: QuaRot (2404.00456), sec. 5, for clipping. All ratios are tried, or the few that a smooth error needs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adatsq_pipe.stages.numerics.grid import Grid

CLIP_STEPS = 40
CLIP_SMALLEST = 0.4
CLIP_NORM = 2.4
"""Search for the clipping ratio: steps, smallest ratio, and the error norm |e|^2.4 (GPTQ's; QuaRot, sec. 5), but see
`clipping_norm`."""
CLIP_SMOOTH = 512
CLIP_STRIDE = 8
"""The error of a row of so many numbers is smooth enough in the ratio to try only every so many steps first, a power of
two."""
CLIP_WIDE = 1024
"""Layers of so many inputs take fewer tries, and norms without a logarithm."""
CLIP_CHUNK = 2**18
"""Numbers that are tried at a time: 1 MiB."""


def weight_grid(w_OI: Tensor, *, bits: int, group: int, symmetric: bool, clip: bool) -> Grid:
    """Grid of `w_OI` [out, in]: min-max per row group, or with `clip` the clipping ratio of least sum |error|^p, with
    the layer's `clipping_norm` p.

    `group` is the groups' width, 0 for the whole row. Ranges include 0; rows of one value are represented exactly.
    Raises ValueError if `group` does not divide the input width.
    """
    out, width = w_OI.shape
    if group and width % group:
        raise ValueError(f"group size {group} does not divide the input width {width}; choose a divisor or 0")
    rows = w_OI.float().reshape(-1, group or width)
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    ratio = _clipping_ratios(rows, low, high, bits, symmetric, width) if clip else 1.0
    scale, zero = (part.reshape(out, -1) for part in _range_grid(low * ratio, high * ratio, bits, symmetric))
    return Grid(bits=bits, scale_OG=scale, zero_OG=zero)


def clipping_norm(bits: int, width: int) -> float:
    """The p of the error |e|^p by which ranges are chosen in a layer of `width` inputs at so many bits.

    2.4 is GPTQ's. Ours: with few levels GPTQ pushes columns outwards and wants a wider range, so two bits take 3; wide
    layers take 2.5 at three bits and 2 from four bits on, which need no logarithm and err as little
    (tests/bench/results/2026-11-30-solves.md).
    """
    if bits <= 2:
        return 3.0
    if width < CLIP_WIDE:
        return CLIP_NORM
    return 2.5 if bits == 3 else 2.0


def clip_tries(width: int) -> int:
    """The most ratios that are tried for a weight of this input width, with one group a row."""
    if width < CLIP_SMOOTH:
        return CLIP_STEPS
    halvings = CLIP_STRIDE.bit_length() - 1
    return CLIP_STEPS // CLIP_STRIDE + (halvings if width >= CLIP_WIDE else 2 * halvings)


def _clipping_ratios(rows_RI: Tensor, low_R: Tensor, high_R: Tensor, bits: int, symmetric: bool, width: int) -> Tensor:
    """The clipping ratio of least error, as `weight_grid` has it, for every row of a layer of `width` inputs, [rows].

    Rows are taken a few at a time, so that they stay in the processor's cache.
    """
    norm, length = clipping_norm(bits, width), rows_RI.shape[1]
    size = len(rows_RI) if rows_RI.is_cuda else max(1, CLIP_CHUNK // length)
    chosen = []
    for rows, low, high in zip(rows_RI.split(size), low_R.split(size), high_R.split(size), strict=True):
        clipping = _Clipping(rows, low, high, bits, symmetric, norm)
        if width >= CLIP_WIDE:
            clipping.downhill()
        else:
            clipping.step_by_step(CLIP_STRIDE if length >= CLIP_SMOOTH else 1)
        chosen.append(clipping.step_R)
    return _clipping_ratio(torch.cat(chosen))


def _clipping_ratio(step_R: Tensor) -> Tensor:
    return 1 - step_R * (1 - CLIP_SMALLEST) / CLIP_STEPS


class _Clipping:
    """The best clipping found for some rows of a weight: `step_R` counts from no clipping, 0, to CLIP_STEPS - 1."""

    def __init__(self, rows_RI: Tensor, low_R: Tensor, high_R: Tensor, bits: int, symmetric: bool, norm: float) -> None:
        self.rows, self.low, self.high, self.bits, self.symmetric = rows_RI, low_R, high_R, bits, symmetric
        self.norm, self.step_R = norm, torch.zeros_like(low_R)
        self._least = torch.full_like(low_R, torch.inf)
        self._scratch = torch.empty_like(rows_RI), torch.empty_like(rows_RI)

    def step_by_step(self, stride: int) -> None:
        """Try every so many steps, a power of two, then those half as many from the best, a quarter, down to one."""
        for step in range(0, CLIP_STEPS, stride):
            self.attempt(torch.full_like(self.low, step))
        reach = stride // 2
        while reach:
            around = self.step_R
            for step_R in (around - reach, around + reach):
                self.attempt(step_R.clamp(0, CLIP_STEPS - 1))
            reach //= 2

    def downhill(self) -> None:
        """Try every eighth step until no row gains; then four, two and one steps from the best, to the side where a
        parabola through the best and the steps tried nearest to it falls."""
        places = CLIP_STEPS // CLIP_STRIDE
        errors = [torch.full_like(self.low, torch.inf)] * (places + 2)  # one more to either side, never tried
        for place in range(1, places):
            errors[place + 1] = self.attempt(torch.full_like(self.low, place * CLIP_STRIDE))
            if bool((self.step_R < place * CLIP_STRIDE).all()):
                break
        if bool((self.step_R <= CLIP_STRIDE).any()):
            errors[1] = self.attempt(torch.zeros_like(self.low))
        best, errors_SR = (self.step_R / CLIP_STRIDE).long(), torch.stack(errors)
        left, right = (errors_SR.gather(0, (best + side).unsqueeze(0)).squeeze(0) for side in (0, 2))
        to_left = to_right = torch.full_like(self.low, CLIP_STRIDE)
        reach = CLIP_STRIDE // 2
        while reach:
            before, least = self.step_R, self._least
            rightward = (right - least) * to_left**2 < (left - least) * to_right**2
            rightward |= right.isinf()  # past the last step that was tried
            error = self.attempt((before + torch.where(rightward, reach, -reach)).clamp(0, CLIP_STEPS - 1))
            better = self.step_R != before
            left, to_left = _beside_the_best(left, to_left, better, ~rightward, least, error, reach)
            right, to_right = _beside_the_best(right, to_right, better, rightward, least, error, reach)
            reach //= 2

    def attempt(self, step_R: Tensor) -> Tensor:
        """Take these steps in the rows where they err less; the error of every row, [rows]."""
        ratio = _clipping_ratio(step_R)
        error = self._error(*_range_grid(self.low * ratio, self.high * ratio, self.bits, self.symmetric))
        better = error < self._least
        self._least = torch.where(better, error, self._least)
        self.step_R = torch.where(better, step_R, self.step_R)
        return error

    def _error(self, scale: Tensor, zero: Tensor) -> Tensor:
        """sum |error|^p of every row, [rows]."""
        places, codes = self._scratch
        torch.div(self.rows, scale.unsqueeze(1), out=places)
        zero = zero.unsqueeze(1)
        torch.round(places, out=codes)  # clamp with tensors is not vectorized
        torch.minimum(torch.maximum(codes, -zero, out=codes), 2**self.bits - 1 - zero, out=codes)
        errors = places.sub_(codes)
        if self.norm == 2:
            length: Tensor = torch.linalg.vector_norm(errors, dim=1)
            return length.mul_(scale).square_()
        errors.abs_()
        if self.norm == 2.5:
            torch.sqrt(errors, out=codes)
            errors.square_().mul_(codes)
        elif self.norm == 3:
            torch.mul(errors, errors, out=codes)
            errors.mul_(codes)
        else:
            errors.log_().mul_(self.norm).exp_()  # takes less time than pow
        return errors.sum(1).mul_(scale.pow(self.norm))


def _beside_the_best(
    beside: Tensor, distance: Tensor, better: Tensor, this_side: Tensor, least: Tensor, error: Tensor, reach: int
) -> tuple[Tensor, Tensor]:
    """Error and distance of the nearest step tried on one side of the best, after one was tried `reach` steps from it,
    on `this_side` or on the other: the step tried, if it was no `better`, or if it was the one left behind."""
    left_behind, missed = better & ~this_side, ~better & this_side
    error_beside = torch.where(left_behind, least, torch.where(missed, error, beside))
    closer = torch.where(better, distance - reach, distance)
    return error_beside, torch.where(left_behind | missed, reach, closer)


def _range_grid(low: Tensor, high: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """(scale, zero) of the ranges [low, high], each [rows]."""
    qmax = 2**bits - 1
    if symmetric:
        scale = 2 * torch.maximum(-low, high) / qmax
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return scale, torch.full_like(scale, 2.0 ** (bits - 1))
    scale = (high - low) / qmax
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale, torch.round(-low / scale).clamp(0, qmax)
