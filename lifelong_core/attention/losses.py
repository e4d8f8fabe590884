"""Losses on the maps of words: L2DM's CLUL, DAL and OAA, and attend-and-excite's.

All take `WordMaps` (fp32, [B, K, h, w]) and give one loss per picture, [B] fp32. Pairs that a row
does not have, and regions without a position, count nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .maps import WordMaps, sharpen, word_maps
from .settings import GuidanceSettings
from .words import PromptPlaces

NATIVE = 256
"""Positions of the 16 x 16 maps that the papers read. Sums over positions are scaled to as many, so
that a larger picture does not weigh more."""
TINY = 1e-6


def guidance_loss(
    maps: Tensor,
    size: tuple[int, int],
    places: Sequence[PromptPlaces],
    settings: GuidanceSettings,
) -> Tensor:
    """The weighted sum of the losses that `settings` asks for, [B] fp32, of raw maps [B, P, T]."""
    return total_loss(read_words(maps, size, places), settings)


def read_words(maps: Tensor, size: tuple[int, int], places: Sequence[PromptPlaces]) -> WordMaps:
    """The pairs' maps from raw maps [B, P, T] (see maps.py): folded, sharpened, chosen; fp32."""
    return word_maps(sharpen(maps, [place.length for place in places]), size, places)


def total_loss(words: WordMaps, settings: GuidanceSettings) -> Tensor:
    """`guidance_loss` of maps that are read already."""
    total = torch.zeros(len(words.nouns), device=words.nouns.device)
    if settings.caa:
        total = total + settings.caa * (clul(words) + dal(words))
    if settings.oaa:
        total = total + settings.oaa * oaa(words, settings.threshold, literal=settings.literal)
    if settings.attend_and_excite:
        total = total + settings.attend_and_excite * attend_and_excite(words)
    return total


def clul(words: WordMaps) -> Tensor:
    """Eq 8: nouns keep to their own strip of the picture, strips in the order of mention.

    1/n_c sum_i |A^i * M_i|^2, M_i = 1 outside of strip i of n_c; nothing for a single noun.
    """
    outside = ~strips(words)[:, :, None] & words.paired[..., None, None]
    squares = words.nouns.square().mul(outside).sum((2, 3))
    positions = words.nouns[0, 0].numel()
    return squares.sum(1) / _count(words.paired) * (NATIVE / positions)


def strips(words: WordMaps) -> Tensor:
    """bool [B, K, w]: the columns of every pair's strip, n vertical strips of a row's n pairs.

    A pair whose strip would have no column keeps to nothing: all columns are its own.
    """
    width = words.nouns.shape[-1]
    count = _count(words.paired)[:, None, None]
    column = torch.arange(width, device=words.nouns.device)
    own = column * count // width == words.mentions[..., None]
    return own | ~own.any(-1, keepdim=True)


def dal(words: WordMaps) -> Tensor:
    """Eq 9: every concept has a place that it stands out at: sum_j 1 - max G(A^j).

    A pair without a concept has its noun in its place.
    """
    return ((1 - peaks(_concept_or_noun(words))) * words.paired).sum(1)


def attend_and_excite(words: WordMaps) -> Tensor:
    """Attend-and-excite's loss: that of the subject which stands out least, max_i 1 - max G(A^i).

    A subject is a pair's whole phrase, its concept and its noun.
    """
    missing = 1 - peaks(words.nouns + words.concepts)
    return missing.masked_fill(~words.paired, 0).amax(1)


def oaa(words: WordMaps, threshold: float, *, literal: bool = False) -> Tensor:
    """Eq 11: concepts attend to their own noun's region and not to the other nouns'.

    M^i = 1 where noun i's map is above `threshold` of its highest value (Eq 10), without a
    gradient. For concept j and noun i, all over n_c:
    i = j: |M^i * (1 - A^j)|^2 / |M^i|;  i != j: |M^i * A^j|^2 / sum A^j, no gradient of the sum.
    As printed (`literal`): |1 - A^j * M^i|^2 and |A^j * M^i|^2, both over sum A^j, with gradient.
    """
    regions = noun_regions(words, threshold).flatten(2).to(words.nouns)
    concepts = words.concepts.flatten(2)
    mass = concepts.sum(-1)
    inside_squared = torch.einsum("bip,bjp->bij", regions, concepts.square())
    if literal:
        inside = (regions * concepts).sum(-1)
        own = concepts.shape[-1] - 2 * inside + inside_squared.diagonal(dim1=1, dim2=2)
        attract = own / mass.clamp(min=TINY)
    else:
        mass = mass.detach()
        attract = (regions * (1 - concepts)).square().sum(-1) / regions.sum(-1).clamp(min=1)
    repel = inside_squared / mass.clamp(min=TINY)[:, None]
    found = regions.any(-1)
    own_pair = torch.eye(regions.shape[1], device=regions.device, dtype=torch.bool)
    counted = found[:, :, None] & words.named[:, None]
    terms = torch.where(own_pair, attract[:, :, None], repel)
    return terms.where(counted, 0).sum((1, 2)) / _count(words.paired)


def noun_regions(words: WordMaps, threshold: float) -> Tensor:
    """Eq 10: bool [B, K, h, w], where a noun's map is above `threshold` of its highest value."""
    nouns = words.nouns.detach()
    return (nouns > threshold * nouns.amax((2, 3), keepdim=True)) & words.paired[..., None, None]


def peaks(maps: Tensor) -> Tensor:
    """The highest value of every smoothed map: [B, K, h, w] -> [B, K]."""
    return smooth(maps).amax((2, 3))


def smooth(maps: Tensor) -> Tensor:
    """Attend-and-excite's 3 x 3 Gaussian, exp(-x^2) along each side, edges mirrored."""
    side = torch.tensor([-1.0, 0.0, 1.0], device=maps.device).square().neg().exp()
    kernel = torch.outer(side, side) / side.sum().square()
    mode = "reflect" if min(maps.shape[-2:]) > 1 else "replicate"
    padded = F.pad(maps.flatten(0, 1)[:, None], (1, 1, 1, 1), mode=mode)
    return F.conv2d(padded, kernel[None, None].to(maps)).view_as(maps)


def _concept_or_noun(words: WordMaps) -> Tensor:
    return torch.where(words.named[..., None, None], words.concepts, words.nouns)


def _count(paired: Tensor) -> Tensor:
    return paired.sum(1).clamp(min=1)
