"""Attention maps as pictures: heat over what was drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from .maps import WordMaps

OPACITY = 0.75
"""How much of the picture the heat covers; what shows through is grey, so that colours are heat."""
GREY = (0.299, 0.587, 0.114)


def mean_words(seen: Sequence[WordMaps]) -> WordMaps:
    """The mean over steps of one batch's maps, which are as large as the largest of them.

    Raises InputError when no step was guided.
    """
    if not seen:
        raise InputError("No step was guided, so there are no attention maps to show.")
    size = max((words.nouns.shape[-2:] for words in seen), key=math.prod)
    nouns, concepts = (
        torch.stack([_grown(maps, size) for maps in each]).mean(0)
        for each in zip(*((words.nouns, words.concepts) for words in seen), strict=True)
    )
    first = seen[0]
    return WordMaps(nouns, concepts, first.paired, first.named, first.mentions)


def noun_heat(images: Tensor, words: WordMaps) -> Tensor:
    """One picture per picture and pair: images [B, 3, H, W] in [0, 1] -> [N, 3, H, W].

    Picture after picture, its pairs in the order they were given. Within a picture all pairs have
    one scale, white is the highest value among them.
    """
    return _heat(images, words.nouns, words.paired)


def concept_heat(images: Tensor, words: WordMaps) -> Tensor:
    """`noun_heat` of the concepts' words; pairs without one show their noun."""
    chosen = torch.where(words.named[..., None, None], words.concepts, words.nouns)
    return _heat(images, chosen, words.paired)


def _heat(images: Tensor, maps: Tensor, paired: Tensor) -> Tensor:
    if len(images) != len(maps):
        raise InputError(f"{len(images)} pictures do not fit the maps of {len(maps)}.")
    maps, paired = maps.to(images.device), paired.to(images.device)
    scaled = maps / maps.amax((1, 2, 3), keepdim=True).clamp(min=1e-6)
    grown = F.interpolate(scaled, images.shape[-2:], mode="bilinear", antialias=False)
    grey = torch.einsum("bchw,c->bhw", images.float(), torch.tensor(GREY, device=images.device))
    under = grey[:, None, None].expand(-1, maps.shape[1], 3, -1, -1)
    return ((1 - OPACITY) * under + OPACITY * fire(grown))[paired]


def _grown(maps: Tensor, size: torch.Size) -> Tensor:
    """Maps [B, K, h, w] at another size. A prompt for a part of the picture has smaller ones."""
    return maps if maps.shape[-2:] == size else F.interpolate(maps, size, mode="bilinear")


def fire(values: Tensor) -> Tensor:
    """Values [B, K, H, W] in [0, 1] as black, red, yellow, white: [B, K, 3, H, W]."""
    return torch.stack([(3 * values - third).clamp(0, 1) for third in range(3)], dim=2)
