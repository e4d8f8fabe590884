"""Pictures to latents and back, in the scale that the UNet works in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..files import content_hash
from .identity import weights_hash

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny


class LatentCodec(Protocol):
    """The VAE behind two functions. Pictures [B, 3, H, W] in [0, 1], latents [B, 4, H/8, W/8]."""

    @property
    def content_hash(self) -> str:
        """Equal for the same weights and scale; a name in caches."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Latents in model scale: the mean, nothing is sampled."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures, clamped to [0, 1]."""
        ...


class VaeCodec:
    """A diffusers VAE as codec: AutoencoderKL (SD1, SD2, SDXL) or AutoencoderTiny (demo).

    Runs in the dtype of its weights, which loading keeps at fp32: SDXL's VAE overflows in fp16.
    """

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny, scale: float) -> None:
        self.vae = vae.requires_grad_(False).eval()
        self.scale = scale

    @property
    def content_hash(self) -> str:
        return content_hash(weights_hash(self.vae.state_dict()), self.scale)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        # Late: it takes seconds, and ComfyUI loads this file whenever it starts.
        from diffusers import AutoencoderTiny

        weight = next(self.vae.parameters())
        encoded = self.vae.encode(images.to(weight) * 2.0 - 1.0)
        if isinstance(self.vae, AutoencoderTiny):
            return encoded.latents.float() * self.scale
        return encoded.latent_dist.mean.float() * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        weight = next(self.vae.parameters())
        images = self.vae.decode(latents.to(weight) / self.scale).sample
        return (images.float() / 2.0 + 0.5).clamp(0.0, 1.0)

    def to(self, device: torch.device | str) -> VaeCodec:
        self.vae.to(device)
        return self
