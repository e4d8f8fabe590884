"""Personal concepts that pretraining never showed: endless, concept `i` of stream `seed`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .backgrounds import BACKGROUNDS, PHRASES
from .dice import Dice
from .looks import Look, concept_look, plain_look
from .scenes import Scene, Thing, placements, render
from .shapes import NOUNS
from .styles import Style, concept_style

TOYS = ("dog", "duck", "cat", "backpack", "teddybear")


@dataclass(frozen=True)
class Character:
    """A personal object: a noun with a reserved look. Photos show it alone, before backgrounds."""

    token: str
    noun: str
    look: Look
    seed: int

    def photos(self, count: int, *, unseen: bool = False) -> Tensor:
        """[count, 3, 128, 128] in [0, 1]. `unseen` photos share no scene with the others."""
        return torch.stack([render(scene).image for scene in self.scenes(count, unseen=unseen)])

    def scenes(self, count: int, *, unseen: bool = False) -> list[Scene]:
        """Scenes with this character alone; backgrounds go round, so that none sticks to it."""
        kind = "unseen" if unseen else "photo"
        return [self._scene(Dice(self.seed, kind, index), index) for index in range(count)]

    def captions(self, count: int) -> list[str]:
        """Captions for `photos(count)` with the token written as ComfyUI reads it."""
        return [
            f"a photo of embedding:{self.token} {self.noun} {PHRASES[scene.background]}"
            for scene in self.scenes(count)
        ]

    def _scene(self, dice: Dice, index: int) -> Scene:
        thing = Thing(self.noun, self.look, placements(1, dice)[0])
        background = BACKGROUNDS[(self.seed + index) % len(BACKGROUNDS)]
        return Scene(background, (thing,), seed=int(dice.unit() * 2**40))


@dataclass(frozen=True)
class PersonalStyle:
    """A personal drawing style: a reserved combination, shown on plain objects."""

    token: str
    style: Style
    seed: int
    noun: str = "drawing"

    def photos(self, count: int, *, unseen: bool = False) -> Tensor:
        """[count, 3, 128, 128] in [0, 1]: different objects, one style."""
        return torch.stack([render(scene).image for scene in self.scenes(count, unseen=unseen)])

    def scenes(self, count: int, *, unseen: bool = False) -> list[Scene]:
        """Scenes of plain objects in this style."""
        kind = "unseen" if unseen else "photo"
        return [self._scene(Dice(self.seed, kind, index), index) for index in range(count)]

    def captions(self, count: int) -> list[str]:
        """Captions for `photos(count)`: the style by its token, the content in plain words."""
        return [
            f"embedding:{self.token} {self.noun} of a {scene.things[0].look.colour} "
            f"{scene.things[0].noun} {PHRASES[scene.background]}"
            for scene in self.scenes(count)
        ]

    def _scene(self, dice: Dice, index: int) -> Scene:
        noun = NOUNS[(self.seed + index) % len(NOUNS)]
        thing = Thing(noun, plain_look(dice), placements(1, dice)[0])
        background = dice.pick(BACKGROUNDS)
        return Scene(background, (thing,), self.style, seed=int(dice.unit() * 2**40))


Personal = Character | PersonalStyle


def character(seed: int, index: int, noun: str | None = None) -> Character:
    """Character `index` of stream `seed`; the noun goes round unless given."""
    dice = Dice(seed, "character", index)
    noun = noun or NOUNS[index % len(NOUNS)]
    return Character(f"v{seed}-{noun}-{index + 1}", noun, concept_look(dice), _seed(dice))


def personal_style(seed: int, index: int) -> PersonalStyle:
    """Style `index` of stream `seed`."""
    dice = Dice(seed, "style", index)
    return PersonalStyle(f"v{seed}-style-{index + 1}", concept_style(dice), _seed(dice))


def toys5(seed: int) -> list[Character]:
    """The five toys that lifelong personalization is measured on: dog, duck, cat, …"""
    return [character(seed, index, noun) for index, noun in enumerate(TOYS)]


def toys10(seed: int) -> list[Personal]:
    """Eight characters and two drawing styles, styles sixth and eighth as in CIDM's stream."""
    first = toys5(seed)
    rest = [character(seed, index, noun) for index, noun in ((5, "dog"), (6, "cat"), (7, "mug"))]
    styles: Sequence[Personal] = _different_styles(seed, 2)
    return [*first, styles[0], rest[0], styles[1], *rest[1:]]


def toys50(seed: int) -> list[Character]:
    """Fifty characters over all nouns."""
    return [character(seed, index) for index in range(50)]


def _different_styles(seed: int, count: int) -> list[PersonalStyle]:
    """Styles of different tones: two that differ in their lines only are hard to tell apart."""
    styles: list[PersonalStyle] = []
    index = 0
    while len(styles) < count:
        candidate = personal_style(seed, index)
        index += 1
        if all(candidate.style.tone != style.style.tone for style in styles):
            token = f"v{seed}-style-{len(styles) + 1}"
            styles.append(replace(candidate, token=token))
    return styles


def _seed(dice: Dice) -> int:
    return int(dice.unit() * 2**40)
