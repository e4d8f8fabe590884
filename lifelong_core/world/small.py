"""Pictures at the size that a small network reads."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

SMALL = 64  # pixels per side, for the world CLIP


def shrink(images: Tensor, size: int = SMALL) -> Tensor:
    """[B, 3, H, W] -> [B, 3, size, size], averaged over areas; smaller ones are enlarged."""
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    if height % size == 0 and width % size == 0:
        return F.avg_pool2d(images, (height // size, width // size))
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
