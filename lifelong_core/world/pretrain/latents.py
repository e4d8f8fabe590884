"""Latents of all rendered scenes, encoded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from ...files import content_hash, load_tensors, save_tensors
from .dataset import to_images

BATCH = 64


@torch.no_grad()
def encode_scenes(
    folder: Path, vae: AutoencoderTiny, pictures: np.ndarray, device: str = "cpu"
) -> Tensor:
    """fp16 latents [N, 4, 16, 16] of `pictures` uint8 [N, 128, 128, 3], kept on disk by content
    of the VAE."""
    name = content_hash(dict(vae.state_dict()), len(pictures))[:12]
    path = folder / f"latents-{name}.safetensors"
    if not path.exists():
        chunks = []
        for start in range(0, len(pictures), BATCH):
            images = to_images(pictures[start : start + BATCH]).to(device)
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(images.device.type, torch.bfloat16):
                chunks.append(vae.encode(images * 2 - 1).latents.half().cpu())
        save_tensors(path, {"latents": torch.cat(chunks).contiguous()})
    return load_tensors(path)[0]["latents"]
