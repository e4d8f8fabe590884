"""Regions without boxes: where an early step's attention puts each concept.

After FreeFuse (2025), whose regions also grow to cells that resemble the anchors. On four pictures
of one pair by the demo model that made them worse, so it is left out: a horizon resembles itself
over the whole width of a picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbone import Backbone
from .capture import attention_maps, watching
from .layers import map_layers, map_size
from .maps import fold, word_maps
from .words import PromptPlaces

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

ANCHORS = 0.02
"""Share of the cells that every concept has in any case."""
BACKGROUND = 0.4
"""Cells where all concepts' maps are below this share of their highest value have no concept."""
GROWN = 0.3
"""How far regions grow from those cells, as a share of the picture's shorter side: an object as the
base model draws it has no place yet for the hat that a concept wears."""
SMOOTHED = 3
"""Cells, along each side, that a map is averaged over: edges of the background are thin."""


@dataclass
class Sight:
    """Maps [B, P, T] of the layers that point at objects, as forward passes of B rows go by."""

    maps: list[Tensor] = field(default_factory=list)

    def __call__(self, name: str, layer: Attention, hidden: Tensor, context: Tensor) -> None:
        self.maps.append(attention_maps(layer, hidden, context))

    def masks(
        self, backbone: Backbone, latents: tuple[int, int], places: PromptPlaces
    ) -> list[list[Tensor]]:
        """A mask [h, w] for every row and each of the K pairs of its prompt.

        Raises InputError when the prompt is another one than that of the rows.
        """
        size = map_size(backbone.family.name, latents)
        return masks_of(torch.stack(self.maps).mean(0), size, places)


@contextmanager
def looking(backbone: Backbone) -> Iterator[Sight]:
    """What the forward passes of a block see."""
    sight = Sight()
    with watching(backbone.unet, map_layers(backbone.family.name), sight):
        yield sight


def masks_of(maps: Tensor, size: tuple[int, int], places: PromptPlaces) -> list[list[Tensor]]:
    """A mask [h, w] for every picture and each of its prompt's K pairs, where their words point:
    raw maps [B, h * w, T]."""
    rows, reach = len(maps), round(GROWN * min(size))
    words = word_maps(fold(maps, [places.length] * rows), size, [places] * rows)
    return [
        list(grown(assign(_scaled(nouns) + _scaled(concepts)), reach))
        for nouns, concepts in zip(words.nouns, words.concepts, strict=True)
    ]


def assign(maps: Tensor) -> Tensor:
    """Which cells belong to which concept: maps [K, h, w] from 0 -> masks [K, h, w] of 0 and 1.

    A cell belongs to the concept whose map, smoothed and in shares of its highest value, is
    highest there, or to none where all are low. The cells where a concept is furthest above the
    others are its own in any case: every concept has cells, and no cell has two.
    """
    smooth = F.avg_pool2d(maps, SMOOTHED, 1, SMOOTHED // 2, count_include_pad=False)
    scaled = _scaled(smooth).flatten(1)
    chosen = torch.cat([scaled, torch.full_like(scaled[:1], BACKGROUND)]).argmax(0)
    for concept, cells in enumerate(_anchors(scaled)):
        chosen[cells] = concept
    return F.one_hot(chosen, len(maps) + 1).T[:-1].float().unflatten(1, maps.shape[1:])


def grown(masks: Tensor, reach: float) -> Tensor:
    """Masks [K, h, w] of 0 and 1, no cell in two, and the free cells that are at most `reach`
    cells away: each in the nearest mask, in one of them where several are as near."""
    distances, owner = _squared_distances(masks).min(0)
    chosen = owner.masked_fill(distances > reach**2, len(masks))
    return F.one_hot(chosen, len(masks) + 1).to(masks).movedim(-1, 0)[:-1]


def _squared_distances(masks: Tensor) -> Tensor:
    """From every cell to the nearest of each mask [K, h, w], in cells; first along its row."""
    height, width = masks.shape[1:]
    rows, columns = _squared_steps(height).to(masks), _squared_steps(width).to(masks)
    far = torch.full_like(masks, height**2 + width**2).masked_fill(masks > 0, 0)
    along = (columns + far[:, :, None]).amin(-1)
    return (rows[:, :, None] + along[:, None]).amin(2)


def _squared_steps(count: int) -> Tensor:
    """Between each two of so many cells in a line."""
    at = torch.arange(count)
    return (at[:, None] - at) ** 2


def _scaled(maps: Tensor) -> Tensor:
    """Maps [K, h, w] in shares of each one's highest value."""
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)


def _anchors(scaled: Tensor) -> list[Tensor]:
    """Of maps [K, N], the cells where each is furthest above all others; no cell twice."""
    count = max(1, round(ANCHORS * scaled.shape[1]))
    free = scaled.clone()
    anchors = []
    for concept in range(len(scaled)):
        others = torch.cat([scaled[:concept], scaled[concept + 1 :]])
        lead = free[concept] - (others.amax(0) if len(others) else 0)
        anchors.append(lead.topk(count).indices)
        free[:, anchors[-1]] = float("-inf")
    return anchors
