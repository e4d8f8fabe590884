"""The single-file checkpoint of each family: which part stands under which names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from ..prompts.clip import ClipConfig
from .families import Family
from .keys import UNET_PREFIX, unet_diffusers_to_ldm
from .layout import Layout, Source
from .text_keys import openclip_layout, plain_layout
from .vae_keys import VAE_PREFIX, vae_layout

MARKER = "lifelong_demo"
"""A tensor of this name makes a file the demo model, so that no other file is taken for it."""
V_PREDICTION_KEY, ZERO_SNR_KEY = "v_pred", "ztsnr"
"""Tensors by which SDXL files say that they predict v, and that the last step is all noise."""
PREDICTION_METADATA = "modelspec.prediction_type"

_TEXT_PREFIXES = {
    ("sd1", "clip_l"): "cond_stage_model.transformer.",
    ("demo", "clip_l"): "cond_stage_model.transformer.",
    ("sd2", "clip_h"): "cond_stage_model.model.",
    ("sdxl", "clip_l"): "conditioner.embedders.0.transformer.",
    ("sdxl", "clip_g"): "conditioner.embedders.1.model.",
}
_SPELLINGS = (
    (re.compile(r"^conditioner\.embedders\.0\.model\."), "cond_stage_model.model."),
    (
        re.compile(
            r"^((?:cond_stage_model|conditioner\.embedders\.0)\.transformer\.)"
            r"(?=embeddings\.|encoder\.|final_layer_norm\.)"
        ),
        r"\1text_model.",
    ),
)
_Value = TypeVar("_Value")


def unet_layout(family: Family) -> Layout:
    """The UNet in a single file."""
    return {
        name: Source(UNET_PREFIX + key) for name, key in unet_diffusers_to_ldm(family.name).items()
    }


def text_prefix(family: Family, config: ClipConfig) -> str:
    """What stands before a text encoder's names in a single file."""
    return _TEXT_PREFIXES[family.name, config.key]


def text_layout(family: Family, config: ClipConfig) -> Layout:
    """One text encoder in a single file."""
    prefix = text_prefix(family, config)
    layout = openclip_layout(config) if prefix.endswith("model.") else plain_layout(config)
    return {name: source.under(prefix) for name, source in layout.items()}


def autoencoder_layout(family: Family) -> Layout:
    """The VAE in a single file."""
    return {name: source.under(VAE_PREFIX) for name, source in vae_layout(family.name).items()}


def usual_spelling(checkpoint: Mapping[str, _Value]) -> dict[str, _Value]:
    """The same mapping with the rarer spellings of text encoder keys replaced."""
    return {_respell(key): value for key, value in checkpoint.items()}


def _respell(key: str) -> str:
    for pattern, replacement in _SPELLINGS:
        key = pattern.sub(replacement, key)
    return key
