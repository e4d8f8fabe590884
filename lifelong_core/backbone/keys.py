"""UNet parameter names: original Stable Diffusion (LDM) and diffusers, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from .families import Family, family_named
from .modules import unet_shapes

UNET_PREFIX = "model.diffusion_model."

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE_BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


@cache
def unet_diffusers_to_ldm(family: str) -> Mapping[str, str]:
    """Every diffusers UNet key of `family` -> its LDM key without prefix."""
    modules = _module_map(family_named(family))
    names: dict[str, str] = {}
    for key in unet_shapes(family):
        module, tail = _split(key, modules)
        names[key] = f"{modules[module]}.{_resnet_tail(tail) if '.resnets.' in module else tail}"
    return MappingProxyType(names)


@cache
def unet_ldm_to_diffusers(family: str) -> Mapping[str, str]:
    """Every LDM UNet key of `family` (without prefix) -> its diffusers key."""
    return MappingProxyType({ldm: key for key, ldm in unet_diffusers_to_ldm(family).items()})


def _split(key: str, modules: dict[str, str]) -> tuple[str, str]:
    """Split a key behind the module in `modules` that holds it."""
    parts = key.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:cut])
        if module in modules:
            return module, ".".join(parts[cut:])
    raise KeyError(key)


def _resnet_tail(tail: str) -> str:
    module, parameter = tail.split(".")
    return f"{_RESNET[module]}.{parameter}"


def _module_map(family: Family) -> dict[str, str]:
    """diffusers module -> LDM module: LDM counts resnets and resamplers of all levels in a row.

    Inside attention blocks the names are equal, so naming the block is enough.
    """
    levels = len(family.unet["block_out_channels"])
    layers = family.unet["layers_per_block"]
    modules = dict(_OUTSIDE_BLOCKS)
    count = 1
    for level in range(levels):
        for layer in range(layers):
            modules[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{count}.0"
            modules[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{count}.1"
            count += 1
        modules[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{count}.0.op"
        count += 1
    modules["mid_block.resnets.0"] = "middle_block.0"
    modules["mid_block.attentions.0"] = "middle_block.1"
    modules["mid_block.resnets.1"] = "middle_block.2"
    count = 0
    for level, block_type in enumerate(family.unet["up_block_types"]):
        for layer in range(layers + 1):
            modules[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{count}.0"
            modules[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{count}.1"
            count += 1
        place = 2 if block_type.startswith("CrossAttn") else 1
        modules[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{count - 1}.{place}.conv"
    return modules
