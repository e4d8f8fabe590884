"""Building the modules of a family without memory, and filling them with tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..prompts.clip import ClipConfig, ClipText
from .families import Family, family_named

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

Shapes = Mapping[str, tuple[int, ...]]
Fetch = Callable[[str], Tensor]
"""Gives the tensor of a module's parameter by its name in the module."""

_KL = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


def empty_unet(family: Family) -> UNet2DConditionModel:
    """The family's UNet on the meta device."""
    # Late: it takes seconds, and ComfyUI loads this file whenever it starts.
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**family.unet)


def empty_text(config: ClipConfig) -> ClipText:
    """A text encoder on the meta device."""
    with torch.device("meta"):
        return ClipText(config)


def empty_vae(family: Family) -> AutoencoderKL | AutoencoderTiny:
    """The family's VAE on the meta device."""
    # Late: it takes seconds, and ComfyUI loads this file whenever it starts.
    from diffusers import AutoencoderKL, AutoencoderTiny

    with torch.device("meta"):
        if family.tiny_vae:
            return AutoencoderTiny()
        return AutoencoderKL(**_KL, scaling_factor=family.latent_scale)


@cache
def unet_shapes(family: str) -> Shapes:
    """Name -> shape of every tensor of the family's UNet."""
    return MappingProxyType(shapes_of(empty_unet(family_named(family))))


@cache
def vae_shapes(family: str) -> Shapes:
    """Name -> shape of every tensor of the family's VAE."""
    return MappingProxyType(shapes_of(empty_vae(family_named(family))))


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in the module's state dict."""
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def check_shapes(part: str, wanted: Shapes, found: Shapes) -> None:
    """Raise ModelError when `found` lacks a tensor of `wanted`, or has it in another shape.

    `part` names the module in the message, e.g. 'The UNet'.
    """
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ModelError(
            f"{part} lacks {len(missing)} of {len(wanted)} tensors (first: {missing[0]}). The file "
            "is incomplete, or a pruned or distilled variant of the family; use the full model."
        )
    wrong = [name for name in wanted if tuple(found[name]) != tuple(wanted[name])]
    if wrong:
        name = wrong[0]
        raise ModelError(
            f"{part} has {len(wrong)} tensors of an unexpected shape (first: {name} is "
            f"{tuple(found[name])}, expected {tuple(wanted[name])}). This variant is not supported."
        )


def fill(
    module: nn.Module, fetch: Fetch, *, dtype: torch.dtype, device: torch.device | str
) -> None:
    """Put real tensors into a module on the meta device, one by one, frozen and in eval mode.

    Only the tensor at hand exists twice, so the peak is the module plus its largest tensor.
    """
    state = {
        name: fetch(name).detach().to(device=device, dtype=dtype) for name in shapes_of(module)
    }
    module.load_state_dict(state, strict=True, assign=True)
    module.requires_grad_(False).eval()
