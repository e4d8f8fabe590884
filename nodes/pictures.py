"""Between the library's pictures [3, H, W] and what ComfyUI shows."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor


def to_pil(picture: Tensor) -> Image.Image:
    """A picture [3, H, W] in [0, 1] as a PIL image."""
    pixels = picture.detach().cpu().float().clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
