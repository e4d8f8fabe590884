"""ComfyUI's CLIP_VISION as the library's feature model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..lifelong_core.files import content_hash
from ..lifelong_core.memory.features import fingerprint

SAMPLES = 96
"""So many weights of every tensor tell CLIP_VISION models apart, by their signs."""


class ClipVisionFeatures:
    """The image embeddings of a CLIP_VISION; ComfyUI loads and moves its weights.

    fingerprint: `clip_vision:<hash>`, equal whatever number format ComfyUI loads the weights in.
    """

    def __init__(self, clip_vision: Any) -> None:
        self.clip_vision = clip_vision
        signs = {}
        for name, weight in clip_vision.get_sd().items():
            flat = weight.detach().reshape(-1)
            step = max(1, flat.numel() // SAMPLES)
            signs[name] = torch.signbit(flat[::step][:SAMPLES])
        self.fingerprint = fingerprint("clip_vision", content_hash(signs))

    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> image embeddings [B, D]."""
        # ComfyUI's weights are inference tensors; in inference mode they may be moved freely.
        with torch.inference_mode():
            output = self.clip_vision.encode_image(images.movedim(1, -1))
        return output.image_embeds.clone().float()
