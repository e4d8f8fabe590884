"""The families of base models, with their architectures as plain data (nothing is downloaded)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from ..errors import ModelError
from ..prompts.clip import EOS, ClipConfig

DOWNSCALE = 8
"""Pixels per latent cell along each side, in every family."""
LATENT_CHANNELS = 4


@dataclass(frozen=True)
class Family:
    """One architecture: UNet, text encoders, VAE, and the values that go with it.

    `unet` holds the arguments of diffusers' UNet2DConditionModel; `latent_scale` multiplies raw
    VAE latents to model scale; `tiny_vae` tells the TAESD architecture from AutoencoderKL;
    `default_size` is the side of a picture in pixels.
    """

    name: str
    label: str
    default_size: int
    default_prediction: str
    guidance: float
    unet: Mapping[str, Any]
    text: tuple[ClipConfig, ...]
    latent_scale: float
    tiny_vae: bool = False

    def for_prediction(self, prediction_type: str) -> Family:
        """The family with the default size of this prediction type (SD2 with v is made for 768)."""
        if self.name == "sd2" and prediction_type == "v_prediction":
            return replace(self, default_size=768)
        return self


_SD_BLOCKS: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
_CLIP_L = ClipConfig(
    key="clip_l",
    width=768,
    layers=12,
    heads=12,
    intermediate=3072,
    activation="quick_gelu",
    pad=EOS,
    output_layer=12,
    final_norm=True,
)

_DEMO = Family(
    name="demo",
    label="the demo model",
    default_size=128,
    default_prediction="v_prediction",
    guidance=5.0,
    unet={
        "sample_size": 16,
        "block_out_channels": (64, 128, 192),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3,
        "up_block_types": ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": 128,
        "attention_head_dim": (2, 4, 6),
    },
    text=(replace(_CLIP_L, width=128, layers=2, heads=4, intermediate=512, output_layer=2),),
    latent_scale=1.0,
    tiny_vae=True,
)
_SD1 = Family(
    name="sd1",
    label="Stable Diffusion 1.x",
    default_size=512,
    default_prediction="epsilon",
    guidance=7.5,
    unet={**_SD_BLOCKS, "cross_attention_dim": 768, "attention_head_dim": 8},
    text=(_CLIP_L,),
    latent_scale=0.18215,
)
_SD2 = Family(
    name="sd2",
    label="Stable Diffusion 2.x",
    default_size=512,
    default_prediction="epsilon",
    guidance=7.5,
    unet={
        **_SD_BLOCKS,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    text=(
        ClipConfig(
            key="clip_h",
            width=1024,
            layers=24,
            heads=16,
            intermediate=4096,
            activation="gelu",
            pad=0,
            output_layer=23,
            final_norm=True,
        ),
    ),
    latent_scale=0.18215,
)
_SDXL = Family(
    name="sdxl",
    label="Stable Diffusion XL",
    default_size=1024,
    default_prediction="epsilon",
    guidance=6.0,
    unet={
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    text=(
        replace(_CLIP_L, output_layer=11, final_norm=False),
        ClipConfig(
            key="clip_g",
            width=1280,
            layers=32,
            heads=20,
            intermediate=5120,
            activation="gelu",
            pad=0,
            output_layer=31,
            final_norm=False,
            pooled=True,
        ),
    ),
    latent_scale=0.13025,
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {family.name: family for family in (_DEMO, _SD1, _SD2, _SDXL)}
)


def family_named(name: str) -> Family:
    """The family of that name. Raises ModelError for another name."""
    if name not in FAMILIES:
        raise ModelError(f"There is no model family {name!r}; known are {', '.join(FAMILIES)}.")
    return FAMILIES[name]
