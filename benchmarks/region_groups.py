"""What the benchmark of regions asks for: characters side by side, each in a strip of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from torch import Tensor

from benchmarks.guidance_groups import rendered
from lifelong_core.attention.regions import Region, box_mask
from lifelong_core.concepts import concept_phrase
from lifelong_core.world.backgrounds import PHRASES
from lifelong_core.world.captions import full_phrase
from lifelong_core.world.dice import Dice
from lifelong_core.world.streams import Character
from lifelong_core.world.wearing import Wanted

MASK = (128, 128)
PLACES = tuple(PHRASES.values())


@dataclass(frozen=True)
class Row:
    """Characters of different nouns, from left to right."""

    characters: tuple[Character, ...]

    @property
    def name(self) -> str:
        """ "dog+cat"; characters that share a noun with another are told by their tokens."""
        return "+".join(one.token for one in self.characters)

    @property
    def kind(self) -> str:
        """The key of its tables."""
        return {2: "pairs", 3: "triples"}[len(self.characters)]

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        """What the judge looks for."""
        return tuple(Wanted(one.noun, one.look) for one in self.characters)

    @property
    def tokens(self) -> list[tuple[str | None, str]]:
        """Token and noun of each, as guidance takes them."""
        return [(one.token, one.noun) for one in self.characters]

    def prompt(self, place: str, named: Sequence[int] | None = None) -> str:
        """A sentence with all characters; with `named`, the others by their plain nouns."""
        kept = range(len(self.characters)) if named is None else named
        things = [
            f"a {concept_phrase(one.token, one.noun) if at in kept else one.noun}"
            for at, one in enumerate(self.characters)
        ]
        return f"a photo of {' and '.join(things)} {place}"

    def told(self, place: str) -> str:
        """The same with plain nouns whose looks are described, as the base model's captions do."""
        things = [full_phrase(one.noun, one.look) for one in self.characters]
        return f"a photo of {' and '.join(things)} {place}"

    def strips(self) -> list[Tensor]:
        """The masks of equal strips from left to right."""
        count = len(self.characters)
        return [box_mask(k / count, 0, (k + 1) / count, 1, MASK) for k in range(count)]

    def regions(self, place: str) -> list[Region]:
        """Each strip with the whole sentence, in which its own character alone is named: prompts
        of one thing alone would draw it into the middle of the picture, over the strip's edge."""
        return [Region(self.prompt(place, [at]), mask) for at, mask in enumerate(self.strips())]

    def scenes(self, count: int) -> Tensor:
        """Renders of these characters in their order, [count, 3, 128, 128]."""
        return rendered([self.wanted] * count, f"regions {self.name}", seed=4)


def character_rows(characters: Sequence[Character], size: int, count: int, seed: int) -> list[Row]:
    """`count` rows of `size` characters with different nouns, drawn by `seed`."""
    fitting = [
        Row(group)
        for group in combinations(characters, size)
        if len({one.noun for one in group}) == size
    ]
    return Dice(seed, "rows", size).sample(fitting, min(count, len(fitting)))
