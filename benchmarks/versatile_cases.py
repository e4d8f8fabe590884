"""Pictures to start from: photos of plain objects to draw in a style or to put a concept into."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from lifelong_core.concepts import concept_phrase, without_mentions
from lifelong_core.world.backgrounds import BACKGROUNDS, PHRASES
from lifelong_core.world.captions import article, full_phrase
from lifelong_core.world.dice import Dice
from lifelong_core.world.judge import Judge
from lifelong_core.world.judge_net import GRID
from lifelong_core.world.looks import plain_look
from lifelong_core.world.scenes import Rendering, Scene, Thing, placements, render
from lifelong_core.world.shapes import NOUNS
from lifelong_core.world.streams import Character, PersonalStyle
from lifelong_core.world.wearing import Wanted, verdict

WITHIN = 0.75
"""Least share of an object's cells that must lie in the mask: else it is drawn across its edge."""
MARGIN = 8
"""Pixels between an object and the edge of the mask over it: one latent of the demo model."""
Answers = dict[str, bool]


@dataclass(frozen=True)
class StyleCase:
    """A photo of a plain object, to be drawn in a style. prompt: with the style's word; plain:
    the same without it."""

    scene: Scene
    style: PersonalStyle
    prompt: str
    plain: str

    @property
    def token(self) -> str:
        """The style's."""
        return self.style.token

    @cached_property
    def photo(self) -> Tensor:
        """[3, H, W] in [0, 1]."""
        return render(self.scene).image

    @property
    def shown(self) -> Tensor:
        """The photo as people see it in a sheet."""
        return self.photo

    @property
    def perfect(self) -> Tensor:
        """The render that a perfect picture would equal, [3, H, W]."""
        return render(replace(self.scene, style=self.style.style)).image

    def answers(self, judge: Judge, pictures: Tensor) -> list[Answers]:
        """One entry per picture [B, 3, H, W].

        style_right: tone, line and texture are the style's. noun_kept: the one object that is
        there is of the photo's noun; its colour cannot be read in pictures of one tone."""
        nouns = [thing.noun for thing in self.scene.things]
        return [
            {"style_right": seen.style == self.style.style, "noun_kept": seen.nouns == nouns}
            for seen in judge.read(pictures)
        ]


@dataclass(frozen=True)
class EditCase:
    """A photo of two plain objects, of which `place` (0: the left one) is to become a concept.

    prompt: names the concept only, for what is under the mask; whole: both objects, in their order.
    """

    scene: Scene
    concept: Character
    place: int
    prompt: str
    whole: str

    @cached_property
    def _rendering(self) -> Rendering:
        return render(self.scene)

    @property
    def token(self) -> str:
        """The concept's."""
        return self.concept.token

    @property
    def around(self) -> str:
        """`whole` with the concept's plain noun."""
        return without_mentions(self.whole, [self.token])

    @property
    def photo(self) -> Tensor:
        """[3, H, W] in [0, 1]."""
        return self._rendering.image

    @property
    def shown(self) -> Tensor:
        """The photo with its mask in a lighter tone."""
        return self.photo * (1 - self.mask / 2) + self.mask / 2

    @cached_property
    def _edited(self) -> Rendering:
        things = list(self.scene.things)
        own = things[self.place]
        things[self.place] = replace(own, noun=self.concept.noun, look=self.concept.look)
        return render(replace(self.scene, things=tuple(things)))

    @property
    def perfect(self) -> Tensor:
        """The render that a perfect picture would equal, [3, H, W]."""
        return self._edited.image

    @cached_property
    def mask(self) -> Tensor:
        """[H, W]: 1 in a box around the object and the concept in its place, grown by MARGIN."""
        own = self._rendering.masks[self.place] | self._edited.masks[self.place]
        rows, columns = own.nonzero().T
        mask = torch.zeros(own.shape)
        top, left = (max(int(edge.min()) - MARGIN, 0) for edge in (rows, columns))
        mask[top : int(rows.max()) + MARGIN + 1, left : int(columns.max()) + MARGIN + 1] = 1
        return mask

    def answers(self, judge: Judge, pictures: Tensor) -> list[Answers]:
        """One entry per picture [B, 3, H, W].

        noun_inside: an object of the concept's noun lies in the mask; edit_inside: and is in its
        look. neighbour_kept: an object outside is still the other one."""
        other = self.scene.things[1 - self.place]
        wanted = [Wanted(self.concept.noun, self.concept.look)]
        kept = [Wanted(other.noun, other.look)]
        where = judge.where(pictures)[:, NOUNS.index(self.concept.noun)]
        cells = F.adaptive_avg_pool2d(self.mask[None], (GRID, GRID))
        within = (where * cells).sum((1, 2)) >= WITHIN * where.sum((1, 2))
        found = []
        for seen, lies in zip(judge.observe(pictures), within.tolist(), strict=True):
            inside = [one for one in seen if self._masked(one.x, one.y)]
            outside = [one for one in seen if not self._masked(one.x, one.y)]
            edited = verdict(inside, wanted)
            found.append(
                {
                    "noun_inside": lies and all(edited.named),
                    "edit_inside": lies and edited.all_present,
                    "neighbour_kept": verdict(outside, kept).all_present,
                }
            )
        return found

    def _masked(self, x: float, y: float) -> bool:
        height, width = self.mask.shape
        return bool(self.mask[int(y * height), int(x * width)])


Case = StyleCase | EditCase


def style_cases(style: PersonalStyle, count: int) -> list[StyleCase]:
    """`count` photos, the same for every style; nouns and backgrounds go round."""
    cases = []
    for index in range(count):
        dice = Dice(index, "photo for a style")
        noun, background = NOUNS[index % len(NOUNS)], BACKGROUNDS[index % len(BACKGROUNDS)]
        thing = Thing(noun, plain_look(dice), placements(1, dice)[0])
        what = f"{article(f'{thing.look.colour} {noun}')} {PHRASES[background]}"
        cases.append(
            StyleCase(
                Scene(background, (thing,), seed=index),
                style,
                f"{concept_phrase(style.token, style.noun)} of {what}",
                f"{style.noun} of {what}",
            )
        )
    return cases


def edit_cases(concept: Character, count: int) -> list[EditCase]:
    """`count` photos without the concept's noun; the concept's place and backgrounds go round."""
    others = [noun for noun in NOUNS if noun != concept.noun]
    cases = []
    for index in range(count):
        dice = Dice(index, "photo for a concept", concept.token)
        things = tuple(
            Thing(noun, plain_look(dice), place)
            for noun, place in zip(dice.sample(others, 2), placements(2, dice), strict=True)
        )
        place, background = index % 2, BACKGROUNDS[index % len(BACKGROUNDS)]
        named = [full_phrase(thing.noun, thing.look) for thing in things]
        named[place] = f"a {concept_phrase(concept.token, concept.noun)}"
        prompt, whole = (
            f"a photo of {what} {PHRASES[background]}"
            for what in (named[place], " and ".join(named))
        )
        cases.append(EditCase(Scene(background, things, seed=index), concept, place, prompt, whole))
    return cases
