"""Writing a base model as the single-file checkpoint that stock loaders read."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import ModelError
from ..files import atomic_write
from .checkpoint import (
    MARKER,
    PREDICTION_METADATA,
    V_PREDICTION_KEY,
    autoencoder_layout,
    text_layout,
    unet_layout,
)
from .codec import VaeCodec
from .layout import stored_tensors
from .model import Backbone
from .vae_keys import TAESD_SCALE, TAESD_SHIFT, VAE_PREFIX

_SD_LATENT_SCALE = 0.18215


def save_single_file(
    backbone: Backbone, path: Path | str, *, dtype: torch.dtype = torch.float16
) -> Path:
    """Write UNet, text encoders and VAE under LDM names, in `dtype`; returns the path.

    The demo model gets its marker and the two TAESD scalars in fp32, without which ComfyUI
    decodes colours 5.5 times too strong; SDXL that predicts v gets the key that says so. Raises
    ModelError when the VAE is not held as weights, FileError when the file cannot be written.
    """
    if not isinstance(backbone.codec, VaeCodec):
        raise ModelError(
            "This base model's VAE belongs to another program; only models loaded by this library "
            "can be saved."
        )
    family = backbone.family
    state = dict(stored_tensors(unet_layout(family), backbone.unet.state_dict()))
    for encoder in backbone.text.modules.values():
        layout = text_layout(family, encoder.config)
        state.update(stored_tensors(layout, encoder.state_dict()))
    state.update(stored_tensors(autoencoder_layout(family), backbone.codec.vae.state_dict()))
    plain = {key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}
    plain.update(_extras(backbone))
    prediction = backbone.schedule.prediction_type
    metadata = {PREDICTION_METADATA: "v" if prediction == "v_prediction" else "epsilon"}
    return atomic_write(Path(path), lambda temporary: save_file(plain, temporary, metadata))


def _extras(backbone: Backbone) -> dict[str, Tensor]:
    family = backbone.family
    if family.name == "demo":
        return {
            MARKER: torch.ones(1),
            VAE_PREFIX + TAESD_SCALE: torch.tensor(_SD_LATENT_SCALE),
            VAE_PREFIX + TAESD_SHIFT: torch.tensor(0.0),
        }
    if family.name == "sdxl" and backbone.schedule.prediction_type == "v_prediction":
        return {V_PREDICTION_KEY: torch.ones(1)}
    return {}
