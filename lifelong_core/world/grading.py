"""Comparing what the judge reads with what a scene or prompt asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .judge import Reading, ThingReading
from .looks import PARTS
from .scenes import Scene, Thing

FLAT_TONES = ("natural", "pastel")  # tones in which colours can be told


@dataclass(frozen=True)
class Grade:
    """What is right in one picture. Objects that are missing have wrong colours and parts.

    `nouns`: every asked noun is there; `alone`: no more objects than asked; `exact`: the same
    objects, each once; `colours`: every object is there in its own colours (of a patterned one,
    in either order); `patterns` likewise; `parts`: right ones of the `asked_parts` parts.
    """

    background: bool
    style: bool
    nouns: bool
    alone: bool
    exact: bool
    colours: bool
    patterns: bool
    parts: int
    asked_parts: int

    @property
    def success(self) -> bool:
        """Every object once, in its own colours."""
        return self.exact and self.colours


def grade(reading: Reading, scene: Scene) -> Grade:
    """Grade one reading against the scene. All parts that an object wears are asked for."""
    pairs = [(thing, _match(reading, thing)) for thing in scene.things]
    found = [(thing, seen) for thing, seen in pairs if seen is not None]
    wanted = sorted(thing.noun for thing in scene.things)
    return Grade(
        background=reading.background == scene.background,
        style=reading.style == scene.style,
        nouns=len(found) == len(pairs),
        alone=len(reading.things) <= len(scene.things),
        exact=reading.nouns == wanted,
        colours=len(found) == len(pairs) and all(_same_colours(t, seen) for t, seen in found),
        patterns=len(found) == len(pairs)
        and all(t.look.pattern == seen.look.pattern for t, seen in found),
        parts=sum(_right_parts(t, seen) for t, seen in found),
        asked_parts=sum(len(_worn(t)) for t in scene.things),
    )


def _match(reading: Reading, thing: Thing) -> ThingReading | None:
    """The seen object of that noun; of several the one whose colours fit, else the surest."""
    same = [seen for seen in reading.things if seen.noun == thing.noun]
    if not same:
        return None
    return max(same, key=lambda seen: (_same_colours(thing, seen), seen.confidence))


def _same_colours(thing: Thing, seen: ThingReading) -> bool:
    return _colours(thing) == _colours(seen)


def _colours(thing: Thing | ThingReading) -> set[str]:
    return {colour for colour in (thing.look.colour, thing.look.second) if colour}


def _worn(thing: Thing) -> list[str]:
    return [part for part in PARTS if getattr(thing.look, part) is not None]


def _right_parts(thing: Thing, seen: ThingReading) -> int:
    return sum(getattr(seen.look, part) == getattr(thing.look, part) for part in _worn(thing))


def summary(grades: Sequence[Grade]) -> dict[str, float]:
    """Share of pictures (for parts: of asked parts) that are right, by name."""
    names = ("background", "style", "nouns", "alone", "exact", "colours", "patterns", "success")
    count = max(1, len(grades))
    shares = {name: sum(getattr(grade, name) for grade in grades) / count for name in names}
    asked = sum(grade.asked_parts for grade in grades)
    if asked:
        shares["parts"] = sum(grade.parts for grade in grades) / asked
    return shares
