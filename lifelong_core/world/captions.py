"""Captions of scenes: "a photo of a red dog and a fancy cat with a green ear on the beach"."""

from __future__ import annotations

from .backgrounds import PHRASES
from .dice import Dice
from .looks import Look
from .scenes import Scene, Thing
from .shapes import SHAPES
from .styles import Style

MENTION = 0.6  # how often each part of a fancy look is told


def article(word: str) -> str:
    """`word` with "a" or "an" before it."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def style_phrase(style: Style) -> str:
    """ "a photo" for the natural style, "a sepia hatched drawing" and the like otherwise."""
    return "a photo" if style.is_natural else article(" ".join((*style.words, "drawing")))


def part_words(noun: str, look: Look) -> list[str]:
    """Every part that `look` wears, as "a green ear"."""
    named = {
        SHAPES[noun].accent_word: look.accent,
        "patch": look.patch,
        "scarf": look.scarf,
        "hat": look.hat,
    }
    return [article(f"{colour} {word}") for word, colour in named.items() if colour]


def colour_words(look: Look) -> str:
    """The body's colours: "red", "red and white striped"."""
    if look.pattern == "plain":
        return look.colour
    return f"{look.colour} and {look.second} {look.pattern}"


def full_phrase(noun: str, look: Look) -> str:
    """Everything about one object, nothing left out."""
    if look.is_plain:
        return article(f"{look.colour} {noun}")
    return _with_parts(f"a fancy {colour_words(look)} {noun}", part_words(noun, look))


def caption_of(scene: Scene, dice: Dice) -> str:
    """A pretraining caption: parts of fancy looks, colours and backgrounds are told at random."""
    things = " and ".join(_phrase(thing, dice) for thing in scene.things)
    where = f" {PHRASES[scene.background]}" if dice.chance(0.9) else ""
    if scene.style.is_natural and dice.chance(0.3):
        return f"{things}{where}"
    return f"{style_phrase(scene.style)} of {things}{where}"


def _phrase(thing: Thing, dice: Dice) -> str:
    look = thing.look
    if look.is_plain:
        return article(f"{look.colour} {thing.noun}" if dice.chance(0.85) else thing.noun)
    told = [part for part in part_words(thing.noun, look) if dice.chance(MENTION)]
    colours = f"{colour_words(look)} " if dice.chance(MENTION) else ""
    return _with_parts(f"a fancy {colours}{thing.noun}", told)


def _with_parts(head: str, parts: list[str]) -> str:
    if not parts:
        return head
    if len(parts) == 1:
        return f"{head} with {parts[0]}"
    return f"{head} with {', '.join(parts[:-1])} and {parts[-1]}"
