"""Prompts that ask for a concept in other places and in other styles than its photos show."""

from __future__ import annotations

from collections.abc import Sequence

from ..world.backgrounds import PHRASES
from ..world.palette import PLAIN_COLOURS
from ..world.shapes import NOUNS

STYLES = ("sepia", "pastel", "mono", "bold")


def evaluation_prompts(phrase: str) -> list[str]:
    """Twenty prompts with `phrase` ("embedding:my-dog dog", or "dog" for the base model).

    Twelve ask for a plain picture before each of the six backgrounds in two wordings, eight for
    each of four drawing styles before two backgrounds.
    """
    places = list(PHRASES.values())
    plain = [f"a photo of a {phrase} {place}" for place in places]
    short = [f"a {phrase} {place}" for place in places]
    drawn = [
        f"a {style} drawing of a {phrase} {places[(2 * number + offset) % len(places)]}"
        for number, style in enumerate(STYLES)
        for offset in (0, 1)
    ]
    return [*plain, *short, *drawn]


def style_prompts(phrase: str) -> list[str]:
    """Twenty prompts for a drawing style: every kind of object in it, in several colours."""
    return [f"{phrase} of {thing}" for thing in _things(20)]


def concept_free_prompts() -> list[str]:
    """Twenty prompts that name no concept, over all nouns of the world."""
    return [f"a photo of {thing}" for thing in _things(20)]


def spread_first(prompts: Sequence[str], count: int) -> list[str]:
    """The same prompts, with `count` of them from all over the list put in front."""
    chosen = [number * len(prompts) // count for number in range(count)]
    rest = [number for number in range(len(prompts)) if number not in chosen]
    return [prompts[number] for number in (*chosen, *rest)]


def _things(count: int) -> list[str]:
    """ "a red dog on the beach" and on: nouns, colours and places go round at different speeds."""
    places = list(PHRASES.values())
    return [
        f"a {_colour(number)} {NOUNS[number % len(NOUNS)]} {places[number % len(places)]}"
        for number in range(count)
    ]


def _colour(number: int) -> str:
    """No vowel comes first, so that "a" fits all of them."""
    colours = [colour for colour in PLAIN_COLOURS if colour[0] not in "aeiou"]
    return colours[number % len(colours)]
