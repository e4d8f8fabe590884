"""From softmax maps over all tokens to the maps of the words that guidance is about.

A map tensor is [B, P, T]: P = h * w positions of one resolution, T tokens; mean over heads and
layers; every position's values add up to one over the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from torch import Tensor

from ..errors import InputError
from ..prompts.clip import CONTEXT_LENGTH
from .words import PromptPlaces, WordPlaces

SHARPNESS = 100.0


@dataclass(frozen=True)
class WordMaps:
    """Maps of a batch's pairs; rows with fewer pairs than the others are filled with zeros.

    nouns, concepts: [B, K, h, w] in [0, 1]: how much of a position's attention the word's tokens
    have together. paired, named: bool [B, K]: the row has this pair; the pair has a concept.
    mentions: [B, K]: the pair's place in the order of mention.
    """

    nouns: Tensor
    concepts: Tensor
    paired: Tensor
    named: Tensor
    mentions: Tensor

    def detach(self) -> WordMaps:
        """The same numbers without a gradient path."""
        return WordMaps(
            self.nouns.detach(), self.concepts.detach(), self.paired, self.named, self.mentions
        )


def probabilities(query: Tensor, key: Tensor, heads: int, scale: float) -> Tensor:
    """softmax(scale q k^T), mean of heads: query [B, P, C], key [B, T, C] -> [B, P, T] fp32."""
    query, key = (rearrange(x, "b n (h d) -> b h n d", h=heads).float() for x in (query, key))
    with torch.autocast(query.device.type, enabled=False):
        return (query @ key.mT * scale).softmax(-1).mean(1)


def fold(maps: Tensor, lengths: Sequence[int]) -> Tensor:
    """Add up the columns of prompts that were repeated to the batch's length: [B, P, T].

    `lengths` [B]: every row's own length; the columns from there on become 0. Raises InputError
    when a length does not divide T.
    """
    total = maps.shape[-1]
    if all(length == total for length in lengths):
        return maps
    rows = []
    for row, length in zip(maps, lengths, strict=True):
        if not 0 < length <= total or total % length:
            raise InputError(
                f"A prompt of {length} positions cannot be repeated to the {total} of the "
                "attention maps: the words were found in another prompt than the one that is drawn."
            )
        once = reduce(row, "p (repeats t) -> p t", "sum", t=length)
        rows.append(torch.nn.functional.pad(once, (0, total - length)))
    return torch.stack(rows)


def sharpen(maps: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
    """Attend-and-excite's maps, [B, P, T] fp32: softmax of 100 times the probabilities.

    Takes part: every position but the first and the last of a chunk of 77. (The begin token takes
    most of the attention.) The others are 0 in the result, so that positions stay valid.
    `lengths` as in `fold`, which is done first.
    """
    maps = maps.float()
    lengths = lengths or [maps.shape[-1]] * len(maps)
    maps = fold(maps, lengths)
    at = torch.arange(maps.shape[-1], device=maps.device)
    within = at[None] < torch.tensor(lengths, device=maps.device)[:, None]
    chunk = CONTEXT_LENGTH if maps.shape[-1] % CONTEXT_LENGTH == 0 else maps.shape[-1]
    kept = within & (at % chunk != 0) & (at % chunk != chunk - 1)
    return (SHARPNESS * maps).masked_fill(~kept[:, None], float("-inf")).softmax(-1)


def word_maps(maps: Tensor, size: tuple[int, int], places: Sequence[PromptPlaces]) -> WordMaps:
    """The maps of all pairs from sharpened maps [B, P, T]; `size` is (h, w) with h * w = P.

    A word of several tokens has the sum of theirs. Raises InputError when `places` does not have
    one entry per row, or when the size does not fit.
    """
    rows, positions, total = maps.shape
    if len(places) != rows or size[0] * size[1] != positions:
        raise InputError(
            f"Attention maps of {rows} rows and {positions} positions do not fit {len(places)} "
            f"prompts and a size of {size[0]} x {size[1]}."
        )
    most = max(len(place.pairs) for place in places)
    nouns, concepts = torch.zeros(2, rows, most, total).unbind()
    mentions = torch.zeros(rows, most, dtype=torch.long)
    paired = torch.zeros(rows, most, dtype=torch.bool)
    for row, place in enumerate(places):
        for k, pair in enumerate(place.pairs):
            _check_places(pair, place.length)
            nouns[row, k, list(pair.noun)] = 1
            concepts[row, k, list(pair.concept)] = 1
            mentions[row, k] = place.mentions[k]
            paired[row, k] = True
    named = concepts.any(-1)

    def chosen(selection: Tensor) -> Tensor:
        picked = selection.to(maps) @ maps.mT
        return rearrange(picked, "b k (h w) -> b k h w", h=size[0])

    device = maps.device
    return WordMaps(
        chosen(nouns), chosen(concepts), paired.to(device), named.to(device), mentions.to(device)
    )


def _check_places(pair: WordPlaces, length: int) -> None:
    if not pair.noun or max(*pair.noun, *pair.concept, 0) >= length:
        raise InputError(f"The places {pair} are not positions of a prompt of {length} positions.")
