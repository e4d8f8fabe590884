"""A lesson's pictures as latents, encoded once: as they are, mirrored, and cropped."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backbone import Backbone
from ..images.tensors import resize
from ..seeding import generator

CROPS = 4
"""Random crops per picture, besides the whole picture, when cropping is asked for."""
SMALLEST_CROP = 0.7
"""Side of the smallest crop as a share of the picture's."""
ENCODED_AT_ONCE = 4


def encode_views(
    backbone: Backbone, images: Tensor, *, flip: bool, crop: bool, seed: int
) -> Tensor:
    """Latents [n, V, 4, h, w] of pictures [n, 3, H, W] in [0, 1], on the backbone's device.

    V = 1 (the whole picture), plus `CROPS` with `crop`, twice as many with `flip`. Crops are
    squares of 0.7 to 1 of the side at random places, enlarged to the picture's size; they are
    drawn once, so that nothing needs to be encoded while training.
    """
    pictures = [_views(image, flip, crop, seed, n) for n, image in enumerate(images)]
    flat = torch.cat(pictures)
    latents = torch.cat([backbone.codec.encode(part) for part in flat.split(ENCODED_AT_ONCE)])
    latents = latents.to(backbone.device, torch.float32)
    return latents.unflatten(0, (len(pictures), -1)).clone()


def _views(image: Tensor, flip: bool, crop: bool, seed: int, number: int) -> Tensor:
    views = [image]
    if crop:
        views += [_random_crop(image, seed, number, k) for k in range(CROPS)]
    if flip:
        views += [view.flip(-1) for view in views]
    return torch.stack(views)


def _random_crop(image: Tensor, seed: int, number: int, k: int) -> Tensor:
    height, width = image.shape[-2:]
    share, down, right = torch.rand(3, generator=generator(seed, "crop", number, k)).tolist()
    side = round(min(height, width) * (SMALLEST_CROP + (1.0 - SMALLEST_CROP) * share))
    top, left = round((height - side) * down), round((width - side) * right)
    return resize(image[:, top : top + side, left : left + side], (height, width))
