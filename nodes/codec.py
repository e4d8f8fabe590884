"""ComfyUI's VAE as the library's `LatentCodec`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..lifelong_core.backbone import weights_hash
from ..lifelong_core.errors import ModelError
from ..lifelong_core.files import content_hash


class ComfyCodec:
    """Encodes and decodes with ComfyUI's own VAE object, so that memory and tiling stay its matter.

    vae: ComfyUI's VAE with 4 latent channels; latent_format: the MODEL's, which scales between
    the VAE's latents and the model's. Raises ModelError for a VAE of another kind.
    """

    def __init__(self, vae: Any, latent_format: Any) -> None:
        if getattr(vae, "first_stage_model", None) is None:
            raise ModelError(
                "This VAE holds no weights. Link the VAE of a checkpoint that contains one, or use "
                "Load VAE."
            )
        if (vae.latent_channels, vae.latent_dim) != (4, 2):
            raise ModelError(
                f"This VAE makes latents with {vae.latent_channels} channels in "
                f"{vae.latent_dim} dimensions; Stable Diffusion 1, 2 and XL need 4 channels in 2. "
                "Link the VAE of the checkpoint, or one made for it."
            )
        self.vae = vae
        self.latent_format = latent_format

    @property
    def content_hash(self) -> str:
        """Equal for the same weights and scale."""
        weights = self.vae.first_stage_model.state_dict()
        return content_hash(weights_hash(weights), float(self.latent_format.scale_factor))

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to latents [B, 4, H/8, W/8] in model scale."""
        # ComfyUI's weights are inference tensors; in inference mode they may be moved freely.
        with torch.inference_mode():
            latents = self.vae.encode(images.movedim(1, -1))
        return self.latent_format.process_in(latents.clone().float())

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, 4, h, w] in model scale to images [B, 3, 8h, 8w] in [0, 1]."""
        with torch.inference_mode():
            images = self.vae.decode(self.latent_format.process_out(latents.float()))
        return images.clone().float().movedim(-1, 1).clamp(0.0, 1.0).contiguous()

    def to(self, device: torch.device | str) -> ComfyCodec:
        """ComfyUI alone moves its VAE; nothing to do."""
        return self
