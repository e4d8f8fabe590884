"""What the benchmark of guidance asks for: toys, in pairs, triples and alone, and plain pairs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import torch
from torch import Tensor

from lifelong_core.attention import Pair
from lifelong_core.concepts import concept_phrase
from lifelong_core.world.backgrounds import BACKGROUNDS, PHRASES
from lifelong_core.world.captions import article
from lifelong_core.world.dice import Dice
from lifelong_core.world.looks import Look
from lifelong_core.world.palette import PLAIN_COLOURS
from lifelong_core.world.scenes import Scene, Thing, placements, render
from lifelong_core.world.streams import TOYS, Character
from lifelong_core.world.wearing import Wanted

PAPER_PAIRS = (
    ("dog", "cat"),
    ("cat", "duck"),
    ("cat", "teddybear"),
    ("backpack", "dog"),
    ("dog", "teddybear"),
)
"""L2DM's Table 2: D+C, C+Dt, C+T, B+D and D+T."""
ALONE = "alone"
SHORT = 2
"""Prompts without "a photo of", beside one with it for each background: eight in all."""
REFERENCES = 12


@dataclass(frozen=True)
class Group:
    """Objects that one picture should show. phrases: how prompts name them, with their article."""

    kind: str
    phrases: tuple[str, ...]
    pairs: tuple[Pair, ...]
    wanted: tuple[Wanted, ...]

    @property
    def name(self) -> str:
        """ "dog+cat" for toys, "red dog+blue cat" for plain objects."""
        toys = [want.noun for want in self.wanted]
        plain = [f"{want.look.colour} {want.noun}" for want in self.wanted]
        return "+".join(plain if self.kind == "base_pairs" else toys)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Eight: before each background, and twice in fewer words."""
        things = " and ".join(self.phrases)
        places = list(PHRASES.values())
        photos = [f"a photo of {things} {place}" for place in places]
        return (*photos, *(f"{things} {place}" for place in places[:SHORT]))

    @cached_property
    def references(self) -> list[Tensor]:
        """Renders of every object alone, [REFERENCES, 3, 128, 128] each."""
        return [
            rendered([[want]] * REFERENCES, f"alone {want.noun}", seed=1) for want in self.wanted
        ]

    def scenes(self, count: int) -> Tensor:
        """Renders of all objects side by side in the order of mention, [count, 3, 128, 128]."""
        return rendered([self.wanted] * count, f"scene {self.name}", seed=2)


def rendered(scenes: Sequence[Sequence[Wanted]], label: str, seed: int) -> Tensor:
    """One render per list of objects from left to right; backgrounds go round."""
    images = []
    for index, wanted in enumerate(scenes):
        dice = Dice(seed, label, index)
        places = placements(len(wanted), dice)
        things = tuple(
            Thing(want.noun, want.look, place) for want, place in zip(wanted, places, strict=True)
        )
        background = BACKGROUNDS[index % len(BACKGROUNDS)]
        images.append(render(Scene(background, things, seed=int(dice.unit() * 2**40))).image)
    return torch.stack(images)


def toy_pairs(toys: Collection[Character], count: int) -> list[Group]:
    """The first `count` pairs of these toys, the paper's five before the others."""
    others = [pair for pair in combinations(TOYS, 2) if set(pair) not in map(set, PAPER_PAIRS)]
    return _toys(toys, (*PAPER_PAIRS, *others), "pairs")[:count]


def toy_triples(toys: Collection[Character], count: int) -> list[Group]:
    """The first `count` triples of these toys."""
    return _toys(toys, tuple(combinations(TOYS, 3)), "triples")[:count]


def toys_alone(toys: Collection[Character]) -> list[Group]:
    """Every toy by itself: pictures of several can hardly show its look more surely."""
    return _toys(toys, tuple((noun,) for noun in TOYS), ALONE)


def base_pairs(seed: int, count: int) -> list[Group]:
    """`count` pairs of plain objects, the nouns of the toys' pairs, in two colours."""
    chosen = [*PAPER_PAIRS, *combinations(TOYS, 2)][:count]
    return [_plain(nouns, Dice(seed, "base pair", index)) for index, nouns in enumerate(chosen)]


def _plain(nouns: Sequence[str], dice: Dice) -> Group:
    colours = dice.sample(PLAIN_COLOURS, len(nouns))
    things = list(zip(colours, nouns, strict=True))
    return Group(
        "base_pairs",
        tuple(article(f"{colour} {noun}") for colour, noun in things),
        tuple(things),
        tuple(Wanted(noun, Look(colour)) for colour, noun in things),
    )


def _toys(toys: Collection[Character], chosen: Sequence[Sequence[str]], kind: str) -> list[Group]:
    by_noun = {toy.noun: toy for toy in toys}
    groups = [[by_noun[noun] for noun in nouns if noun in by_noun] for nouns in chosen]
    return [
        Group(
            kind,
            tuple(f"a {concept_phrase(toy.token, toy.noun)}" for toy in group),
            tuple((toy.token, toy.noun) for toy in group),
            tuple(Wanted(toy.noun, toy.look) for toy in group),
        )
        for group, nouns in zip(groups, chosen, strict=True)
        if len(group) == len(nouns)
    ]
