"""Pictures for judge and CLIP: shrunk, through the VAE, spoiled; made once where possible."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional as F

from ...files import content_hash
from ..scenes import Scene, render
from ..small import shrink
from .arrays import cached
from .dataset import to_images

CHUNK = 16  # small batches stay in the cache, where a CPU decodes twice as fast
BLOTCHES = 16  # per side, one per latent cell


def small_pictures(path: Path, pictures: np.ndarray) -> np.ndarray:
    """uint8 [N, 64, 64, 3] of `pictures` [N, 128, 128, 3], kept in `path`."""
    return cached(path, lambda: _changed(pictures, shrink))


def rebuilt_pictures(
    folder: Path, name: str, pictures: np.ndarray, vae: AutoencoderTiny
) -> np.ndarray:
    """uint8 `pictures` [N, 128, 128, 3] after the VAE, as generated ones look at their best.

    Kept by `name`, count and content of the VAE.
    """
    path = folder / f"through-{name}-{len(pictures)}-{vae_key(vae)}.npy"
    return cached(path, lambda: _changed(pictures, _through(vae)))


def vae_key(vae: AutoencoderTiny) -> str:
    """Names what was made with this VAE."""
    return content_hash(dict(vae.state_dict()))[:12]


def _through(vae: AutoencoderTiny) -> Callable[[Tensor], Tensor]:
    weight = next(vae.parameters())

    def through(images: Tensor) -> Tensor:
        images = images.to(weight.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16):
            decoded = vae.decode(vae.encode(images * 2 - 1).latents).sample
        return (decoded.float() / 2 + 0.5).clamp(0, 1).cpu()

    return through


@torch.no_grad()
def _changed(pictures: np.ndarray, change: Callable[[Tensor], Tensor]) -> np.ndarray:
    starts = range(0, len(pictures), CHUNK)
    chunks = (to_images(pictures[start : start + CHUNK]) for start in starts)
    return np.concatenate([to_pixels(change(chunk)) for chunk in chunks])


def to_pixels(images: Tensor) -> np.ndarray:
    """[B, 3, H, W] in [0, 1] -> uint8 [B, H, W, 3]."""
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def rendered(scenes: Iterable[Scene], size: int) -> np.ndarray:
    """uint8 [N, size, size, 3]: scenes drawn at full size, then shrunk."""
    return np.concatenate([to_pixels(shrink(render(scene).image[None], size)) for scene in scenes])


def spoil(images: Tensor, draw: torch.Generator) -> Tensor:
    """What generated pictures suffer from: grain, blotches, blur, each in half of the pictures.

    `images` [B, 3, S, S]; blotches grow with S.
    """
    count, size = len(images), images.shape[-1]
    strength = torch.rand(count, 3, 1, 1, 1, generator=draw)
    strength = strength * (torch.rand(count, 3, 1, 1, 1, generator=draw) < 0.5)
    halved = F.avg_pool2d(images, 2)
    blurred = F.interpolate(halved, (size, size), mode="bilinear", align_corners=False)
    images = images.lerp(blurred, strength[:, 0])
    grain = torch.randn(images.shape, generator=draw)
    coarse = torch.randn(count, 3, BLOTCHES, BLOTCHES, generator=draw)
    blotches = F.interpolate(coarse, (size, size), mode="bilinear", align_corners=False)
    return images + 0.06 * strength[:, 1] * grain + 0.06 * strength[:, 2] * blotches
