"""Between the library's pictures [3, H, W] and what ComfyUI shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..lifelong_core.charts import PAPER


def to_pil(picture: Tensor) -> Image.Image:
    """A picture [3, H, W] in [0, 1] as a PIL image."""
    pixels = picture.detach().cpu().float().clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def as_batch(image: Image.Image) -> Tensor:
    """An IMAGE batch [1, height, width, 3]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0).unsqueeze(0)


def stacked(images: Sequence[Image.Image]) -> Tensor:
    """The images one below the other, as an IMAGE batch [1, height, width, 3]."""
    width = max(image.width for image in images)
    page = Image.new("RGB", (width, sum(image.height for image in images)), PAPER)
    top = 0
    for image in images:
        page.paste(image, (0, top))
        top += image.height
    return as_batch(page)
