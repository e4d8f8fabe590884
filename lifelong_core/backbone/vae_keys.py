"""VAE names: diffusers' and the checkpoint's, for AutoencoderKL and for TAESD (the demo)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import TypeVar

from .families import family_named
from .layout import Layout, Source
from .modules import vae_shapes

VAE_PREFIX = "first_stage_model."
TAESD_SCALE, TAESD_SHIFT = "vae_scale", "vae_shift"
"""Scalars that ComfyUI keeps with a TAESD: raw latents are model latents / scale + shift."""

_Value = TypeVar("_Value")
_LEVELS = 4
_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@cache
def vae_layout(family: str) -> Layout:
    """The family's VAE under the names of single-file checkpoints, without prefix."""
    source = _tiny_source if family_named(family).tiny_vae else _kl_source
    return {name: source(name) for name in vae_shapes(family)}


def with_present_names(state: Mapping[str, _Value]) -> dict[str, _Value]:
    """A diffusers VAE's mapping with the attention names of early diffusers brought up to date."""
    pattern = re.compile(r"(?<=\.attentions\.0\.)(query|key|value|proj_attn)(?=\.)")
    return {
        pattern.sub(lambda found: _OLD_ATTENTION[found.group(1)], key): value
        for key, value in state.items()
    }


def folder_layout(family: str) -> Layout:
    """The family's VAE under diffusers' own names (early ones keep 1x1 convolutions)."""
    return {name: Source(name, pointwise=_is_projection(name)) for name in vae_shapes(family)}


def _is_projection(name: str) -> bool:
    return ".attentions." in name and ".to_" in name and name.endswith("weight")


def _kl_source(name: str) -> Source:
    side, _, rest = name.partition(".")
    if side in ("quant_conv", "post_quant_conv"):
        return Source(name)
    return Source(f"{side}.{_kl_tail(rest)}", pointwise=_is_projection(name))


def _kl_tail(rest: str) -> str:
    """Name below `encoder.` or `decoder.`; the decoder's levels are counted from the other end."""
    rest = rest.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if match := re.fullmatch(r"mid_block\.resnets\.(\d)\.(.+)", rest):
        return f"mid.block_{int(match.group(1)) + 1}.{match.group(2)}"
    if match := re.fullmatch(r"mid_block\.attentions\.0\.(.+)\.(weight|bias)", rest):
        return f"mid.attn_1.{_ATTENTION[match.group(1)]}.{match.group(2)}"
    if match := re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|\w+samplers)\.(\d)\.(.+)", rest):
        way, number, kind, index, tail = match.groups()
        level = int(number) if way == "down" else _LEVELS - 1 - int(number)
        inside = f"block.{index}" if kind == "resnets" else f"{way}sample"
        return f"{way}.{level}.{inside}.{tail}"
    return rest


def _tiny_source(name: str) -> Source:
    side, _, number, tail = name.split(".", 3)
    # TAESD's decoder begins with a clamp, which diffusers does not count as a layer.
    offset = 1 if side == "decoder" else 0
    return Source(f"taesd_{side}.{int(number) + offset}.{tail}")
