"""From trained stages to the shipped checkpoint, and back."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from ...backbone import Backbone, VaeCodec, load_backbone, save_single_file
from ...errors import ModelError

TAESD_WIDTH = 64  # hard-coded in ComfyUI


def widen(vae: AutoencoderTiny) -> AutoencoderTiny:
    """The same function with every layer TAESD_WIDTH wide: new channels are zero throughout.

    A narrow VAE trains several times faster on a CPU; the stock loader knows only the full width.
    """
    wide = AutoencoderTiny().requires_grad_(False)
    narrow = vae.state_dict()
    padded = {name: _pad(narrow[name], value) for name, value in wide.state_dict().items()}
    wide.load_state_dict(padded)
    return wide.eval()


def _pad(value: Tensor, like: Tensor) -> Tensor:
    out = torch.zeros_like(like)
    out[tuple(slice(size) for size in value.shape)] = value
    return out


def export_demo(backbone: Backbone, vae: AutoencoderTiny, path: Path) -> Path:
    """Write UNet, text encoder and VAE as one fp16 file in SD1 names, for any loader that knows
    the demo model (ComfyUI's stock loader, once this pack is installed)."""
    whole = Backbone(
        backbone.family, backbone.unet, backbone.text, VaeCodec(widen(vae), 1.0), backbone.schedule
    )
    return save_single_file(whole, path, dtype=torch.float16)


def demo_vae(path: Path) -> AutoencoderTiny:
    """The VAE in the demo checkpoint `path`. Raises ModelError for a checkpoint of another kind."""
    codec = load_backbone(path).codec
    if not isinstance(codec, VaeCodec) or not isinstance(codec.vae, AutoencoderTiny):
        raise ModelError(f"{path.name} is no demo model: its VAE cannot go on learning here.")
    return codec.vae
