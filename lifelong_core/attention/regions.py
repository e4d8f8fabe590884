"""Regions of a picture: their masks at any resolution, and mixing what was computed for each.

Knows neither diffusers nor ComfyUI. U regions; B pictures; N = h * w positions of a layer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError

log = logging.getLogger(__name__)

ALPHA = 0.1
"""Share of the whole picture's noise inside the regions (CIDM, Eq 5)."""
DELAY = 0.3
"""Share of the steps before what was learned comes in: the base model knows how several things
stand in one picture, which no lesson's pictures of a single thing show."""
MOST_SOFTNESS = 0.5
STRETCH = 1.1
"""Ratio of a mask's proportions to the picture's from which stretching it is worth a warning."""


@dataclass(frozen=True)
class Region:
    """What a part of the picture shows.

    prompt: the region's own text. mask: [H, W] float in [0, 1], of any size; it is stretched over
    the picture.
    """

    prompt: str
    mask: Tensor


def box_mask(left: float, top: float, right: float, bottom: float, size: tuple[int, int]) -> Tensor:
    """A box in shares of the picture's width and height as a mask [H, W] of 0 and 1.

    A pixel belongs to the box that holds its centre, so that neighbouring boxes share none; a box
    between all centres has the pixel around its own. Raises InputError for a box that is empty or
    not inside the picture.
    """
    height, width = size
    if height < 1 or width < 1:
        raise InputError(f"A mask of {height} x {width} pixels has no place for a box.")
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise InputError(
            f"The box from ({left}, {top}) to ({right}, {bottom}) is empty or not inside the "
            "picture: left < right and top < bottom must be shares from 0 to 1."
        )
    rows, columns = _inside(top, bottom, height), _inside(left, right, width)
    return (rows[:, None] & columns[None]).float()


def _inside(start: float, end: float, count: int) -> Tensor:
    """Which of `count` pixels in a row have their centre in [start, end): bool [count]."""
    centres = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    inside = (centres >= start) & (centres < end)
    if not inside.any():
        inside[min(int((start + end) / 2 * count), count - 1)] = True
    return inside


def check_regions(regions: Sequence[Region], picture: tuple[int, int]) -> None:
    """Raise InputError for regions that a picture of (height, width) pixels cannot be drawn with.

    These are: no region at all, a mask that is not [H, W] or empty, values that are not finite or
    not in [0, 1]. Masks of other proportions than the picture's are stretched, with a warning.
    """
    if not regions:
        raise InputError("There is no region; give at least one, with a prompt and a mask.")
    if min(picture) < 1:
        raise InputError(f"A picture of {picture[0]} x {picture[1]} pixels has no regions.")
    for number, region in enumerate(regions, 1):
        _check_mask(region.mask, f"region {number} ({region.prompt!r})")
        height, width = region.mask.shape
        ratio = (height * picture[1]) / (width * picture[0])
        if max(ratio, 1 / ratio) > STRETCH:
            log.warning(
                "The mask of region %d has %d x %d pixels; it is stretched over the picture of "
                "%d x %d.",
                number,
                height,
                width,
                *picture,
            )


def _check_mask(mask: Tensor, owner: str) -> None:
    if mask.ndim != 2 or not mask.numel():
        raise InputError(
            f"The mask of {owner} has the shape {list(mask.shape)}; it must be [height, width]."
        )
    if not mask.isfinite().all() or mask.min() < 0 or mask.max() > 1:
        raise InputError(f"The mask of {owner} has values that are not between 0 and 1.")
    if not mask.any():
        raise InputError(f"The mask of {owner} is empty; paint at least one pixel of it white.")


def check_mixture(alpha: float, softness: float) -> None:
    """Raise InputError unless alpha is in [0, 1] and softness in [0, 0.5]."""
    if not (math.isfinite(alpha) and 0 <= alpha <= 1):
        raise InputError(f"alpha is a share from 0 to 1; it is {alpha}.")
    if not (math.isfinite(softness) and 0 <= softness <= MOST_SOFTNESS):
        raise InputError(
            f"softness is a share of the picture from 0 to {MOST_SOFTNESS}; it is {softness}."
        )


def check_delay(delay: float) -> None:
    """Raise InputError unless it is a share of the steps that leaves some."""
    if not (math.isfinite(delay) and 0 <= delay < 1):
        raise InputError(f"delay is a share of the steps from 0 to less than 1; it is {delay}.")


def delayed_steps(delay: float, steps: int) -> int:
    """How many of all `steps` come before what was learned: with a delay at least one, and at
    least one is left."""
    return min(max(round(delay * steps), int(delay > 0)), steps - 1)


def cover(masks: Sequence[Tensor], size: tuple[int, int], softness: float = 0.0) -> Tensor:
    """How much of each cell belongs to each region: masks [H, W] of any sizes -> [U, h, w] fp32.

    A cell has the mean of the mask over its area. softness: standard deviation of a Gaussian that
    blurs the edges, in shares of the shorter side of `size`; beyond the picture's border a region
    goes on as it is there. A region that fills no cell by half has its strongest cell as a whole.
    """
    if not masks:
        return torch.zeros(0, *size)
    return torch.stack([_cover(mask.float(), size, softness) for mask in masks])


def _cover(mask: Tensor, size: tuple[int, int], softness: float) -> Tensor:
    rows, columns = (_areas(size[axis], mask.shape[axis]).to(mask.device) for axis in (0, 1))
    covered = _blurred(rows @ mask @ columns.T, softness * min(size)).clamp(0, 1)
    peak = mask.max()
    if covered.max() < peak / 2:
        covered.flatten()[covered.argmax()] = peak
    return covered


def _areas(cells: int, pixels: int) -> Tensor:
    """Share of each cell that lies in each pixel, along one side: [cells, pixels]."""
    cell = torch.arange(cells, dtype=torch.float64)[:, None] / cells
    pixel = torch.arange(pixels, dtype=torch.float64)[None] / pixels
    ends = torch.minimum(cell + 1 / cells, pixel + 1 / pixels)
    shared = (ends - torch.maximum(cell, pixel)).clamp(min=0)
    return (shared / shared.sum(1, keepdim=True)).float()


def _blurred(mask: Tensor, deviation: float) -> Tensor:
    """A Gaussian blur of [h, w]; `deviation` in cells, none at 0."""
    if deviation == 0:
        return mask
    reach = math.ceil(3 * deviation)
    at = torch.arange(-reach, reach + 1, device=mask.device, dtype=mask.dtype)
    kernel = (-0.5 * (at / deviation) ** 2).exp()
    kernel = kernel / kernel.sum()
    padded = F.pad(mask[None, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])[0, 0]


def mix_attention(everywhere: Tensor, inside: Tensor, covered: Tensor) -> Tensor:
    """The whole prompt's attention with each region's own inside it: -> [B, N, C].

    everywhere [B, N, C]; inside [U, B, N, C]: what each region's prompt gives; covered [U, N].
    Where regions overlap they are averaged, where they cover a part the rest is `everywhere`.
    """
    shares = shares_of(covered.to(everywhere))
    mixed = torch.einsum("un,ubnc->bnc", shares, inside)
    return (1 - shares.sum(0))[:, None] * everywhere + mixed


def aggregate_noise(
    whole: Tensor, regional: Tensor, covered: Tensor, alpha: float = ALPHA
) -> Tensor:
    """Regional noise aggregation: whole [B, 4, h, w], regional [U, B, 4, h, w] -> [B, 4, h, w].

    E* = (1 - M) E + M alpha E + (1 - alpha) sum_u w_u E_u with w_u = m_u / max(1, sum m_u) and
    M = sum w_u: Eq 5 of CIDM inside the regions `covered` [U, h, w], and E outside, where Eq 5 as
    printed would leave alpha E. The weights of E and all E_u add up to 1 in every cell.
    """
    shares = (1 - alpha) * shares_of(covered.to(whole))
    mixed = torch.einsum("uhw,ubchw->bchw", shares, regional)
    return (1 - shares.sum(0)) * whole + mixed


def shares_of(covered: Tensor) -> Tensor:
    """Weights [U, ...] of the regions in each place, together at most 1."""
    return covered / covered.sum(0).clamp(min=1)
