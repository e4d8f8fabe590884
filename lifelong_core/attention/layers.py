"""Cross-attention layers by diffusers' names and by ComfyUI's blocks: all, and those to read."""

from __future__ import annotations

from functools import cache

from ..backbone.context_layers import QUERY, family_context_layers
from ..backbone.keys import unet_diffusers_to_ldm

LATENT_CELLS = {"demo": 1}
"""Latent cells per cell of the maps, along each side; 4 elsewhere: 16 x 16 maps at 512 pixels, the
ones that attend-and-excite found to tell objects apart."""
LOCALISING = {"demo": ("up_blocks.2.attentions.0.",)}
"""Of a family's layers of that size, those that are read, where not all point at the object. In
the demo model the two of `up_blocks.2` do (a noun's peak lies inside its object in nine pictures of
ten, that of `down_blocks.0` in half of them or less); the first of them ends the pass sooner."""
ENDING = ".attn2.to_q.weight"


@cache
def map_layers(family: str) -> tuple[str, ...]:
    """diffusers' names of the `attn2` modules to read, all of one resolution."""
    return tuple(name for name, _ in _layers(family))


@cache
def map_blocks(family: str) -> tuple[tuple[str, int, int], ...]:
    """The same layers as ComfyUI names them: ("input", "middle" or "output", block, transformer).

    These are the keys of its `attn2_replace` patches.
    """
    return tuple(_block(ldm) for _, ldm in _layers(family))


@cache
def context_blocks(family: str) -> tuple[tuple[str, int, int], ...]:
    """All cross-attention layers in their order, as ComfyUI names them."""
    ldm = unet_diffusers_to_ldm(family)
    return tuple(_block(ldm[f"{name}{QUERY}"]) for name in family_context_layers(family))


def map_size(family: str, latents: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of the maps for latents of (height, width) cells; halves are rounded up."""
    cells = _cells(family)
    return -(-latents[0] // cells), -(-latents[1] // cells)


def _cells(family: str) -> int:
    return LATENT_CELLS.get(family, 4)


def _layers(family: str) -> list[tuple[str, str]]:
    """(diffusers' name, LDM's name of its query weight) of every layer to read."""
    names = unet_diffusers_to_ldm(family)
    levels = 1 + max(int(name.split(".")[1]) for name in names if name.startswith("down_blocks."))
    wanted = LOCALISING.get(family, ("",))
    return [
        (name.removesuffix(".to_q.weight"), ldm)
        for name, ldm in names.items()
        if name.endswith(ENDING)
        and name.startswith(wanted)
        and 2 ** _level(name, levels) == _cells(family)
    ]


def _level(name: str, levels: int) -> int:
    """How often the latent was halved where this layer works."""
    part, index = name.split(".")[:2]
    if part == "mid_block":
        return levels - 1
    return int(index) if part == "down_blocks" else levels - 1 - int(index)


def _block(ldm: str) -> tuple[str, int, int]:
    parts = ldm.split(".")
    transformer = int(parts[parts.index("transformer_blocks") + 1])
    part = parts[0].removesuffix("_block").removesuffix("_blocks")
    return part, 0 if part == "middle" else int(parts[1]), transformer
