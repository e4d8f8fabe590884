"""Captions for the world CLIP: shortened, falsified, and short ones that tell one thing only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..backgrounds import BACKGROUNDS, PHRASES
from ..captions import article
from ..clip import END, PAD, START, VOCABULARY, word_ids
from ..grading import FLAT_TONES
from ..palette import COLOURS
from ..scenes import Scene
from ..shapes import NOUNS

DROPPED = 0.1  # share of words left out in half of the captions
UNTELLABLE, COLOURED = 1, 2  # see `facts_of`

_NOUN_IDS = [VOCABULARY[noun] for noun in NOUNS]
_COLOUR_IDS = [VOCABULARY[colour] for colour in COLOURS]


def shortened(ids: Tensor, draw: torch.Generator) -> Tensor:
    """Leave words out in half of the captions, so that every wording of a prompt is understood."""
    content = (ids != PAD) & (ids != START) & (ids != END)
    chance = DROPPED * (torch.rand(len(ids), 1, generator=draw) < 0.5)
    gone = content & (torch.rand(ids.shape, generator=draw) < chance)
    kept = ids.masked_fill(gone, PAD)
    order = (kept == PAD).int().argsort(dim=1, stable=True)
    return kept.gather(1, order)


def falsified(ids: Tensor, draw: torch.Generator) -> Tensor:
    """One false caption for each: two colours swapped where there are two (half of the time), else
    a noun or a colour replaced. Without these, who wears what is hardly learned: the words alone,
    in any order, tell most captions of a batch apart (Yuksekgonul et al. 2023)."""
    rolls = torch.rand(len(ids), 3, generator=draw).tolist()
    rows = [_falsified(row, *roll) for row, roll in zip(ids.tolist(), rolls, strict=True)]
    return torch.tensor(rows)


def _falsified(row: list[int], kind: float, where: float, what: float) -> list[int]:
    nouns = [k for k, number in enumerate(row) if number in _NOUN_IDS]
    colours = [k for k, number in enumerate(row) if number in _COLOUR_IDS]
    row = list(row)
    # A pattern's two colours ("red and white striped") may stand in either order.
    swaps = [(a, b) for a in colours for b in colours if b > a and b - a != 2 and row[a] != row[b]]
    if swaps and kind < 0.5:
        a, b = swaps[int(where * len(swaps))]
        row[a], row[b] = row[b], row[a]
        return row
    by_colour = colours and (kind > 0.75 or not nouns)
    places, options = (colours, _COLOUR_IDS) if by_colour else (nouns, _NOUN_IDS)
    if places:
        others = [number for number in options if number not in row]
        row[places[int(where * len(places))]] = others[int(what * len(others))]
    return row


def facts_of(scene: Scene) -> list[int]:
    """[8 + 1]: per noun 0 (not there), UNTELLABLE (there; no single colour, or none can be told)
    or COLOURED + the number of its plain body's colour; then the number of the background."""
    row = [0] * len(NOUNS)
    for thing in scene.things:
        told = thing.look.pattern == "plain" and scene.style.tone in FLAT_TONES
        row[NOUNS.index(thing.noun)] = (
            COLOURED + COLOURS.index(thing.look.colour) if told else UNTELLABLE
        )
    return [*row, BACKGROUNDS.index(scene.background)]


@dataclass(frozen=True)
class Level:
    """Short captions that tell the same kind of thing: `ids` [K, CONTEXT], `colour` and
    `background` [K] (-1: not told), `noun` [K]."""

    ids: Tensor
    noun: Tensor
    colour: Tensor
    background: Tensor

    def truth(self, facts: Tensor) -> tuple[Tensor, Tensor]:
        """`facts` [B, 9] -> bool [B, K] twice: what is true of each picture, and what is false."""
        there, where = facts[:, self.noun], facts[:, -1:]
        told = (self.colour < 0) | (there == COLOURED + self.colour)
        here = (self.background < 0) | (where == self.background)
        unsure = (self.colour >= 0) & (there == UNTELLABLE)
        return (there > 0) & told & here & ~unsure, ~((there > 0) & told & here) & ~unsure


def levels(start: str = "a photo of ") -> dict[str, Level]:
    """Every caption "a dog", "a red dog" and "a dog on grass", each after `start`."""

    def level(rows: list[tuple[str, int, int, int]]) -> Level:
        ids = torch.tensor([word_ids(start + text) for text, *_ in rows])
        noun, colour, background = torch.tensor([numbers for _, *numbers in rows]).unbind(1)
        return Level(ids, noun, colour, background)

    nouns = list(enumerate(NOUNS))
    return {
        "noun": level([(article(noun), n, -1, -1) for n, noun in nouns]),
        "colour": level(
            [
                (article(f"{colour} {noun}"), n, c, -1)
                for n, noun in nouns
                for c, colour in enumerate(COLOURS)
            ]
        ),
        "background": level(
            [
                (f"{article(noun)} {phrase}", n, -1, b)
                for n, noun in nouns
                for b, phrase in enumerate(PHRASES.values())
            ]
        ),
    }
