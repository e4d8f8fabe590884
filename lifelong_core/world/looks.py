"""What an object wears: colours, pattern and parts, and which looks are kept for concepts."""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass

from .dice import Dice
from .palette import COLOURS, PLAIN_COLOURS

PATTERNS = ("two-tone", "striped", "spotted")
PARTS = ("accent", "patch", "scarf", "hat")
RESERVED_MODULUS = 5


@dataclass(frozen=True)
class Look:
    """Colour names of one object. A part of None is absent; an accent of None is a body's shade."""

    colour: str
    pattern: str = "plain"
    second: str | None = None
    accent: str | None = None
    patch: str | None = None
    scarf: str | None = None
    hat: str | None = None

    @property
    def is_plain(self) -> bool:
        """One colour and nothing else: what every prompt such as "a red dog" means."""
        return self == Look(self.colour)

    @property
    def is_reserved(self) -> bool:
        """Kept for concepts: one look in five, by a hash that is the same everywhere."""
        if self.is_plain:
            return False
        text = "|".join(str(value) for value in astuple(self))
        digest = hashlib.sha256(text.encode()).digest()
        return int.from_bytes(digest[:8], "big") % RESERVED_MODULUS == 0


def plain_look(dice: Dice) -> Look:
    """One of the plain colours."""
    return Look(dice.pick(PLAIN_COLOURS))


def fancy_look(dice: Dice) -> Look:
    """A random look with pattern and parts for pretraining: never a reserved one."""
    return _draw(dice, reserved=False, pattern_chance=0.6, part_chance=0.45)


def concept_look(dice: Dice) -> Look:
    """A rich look for a personal concept: always a reserved one, with pattern or several parts."""
    while True:
        look = _draw(dice, reserved=True, pattern_chance=0.75, part_chance=0.65)
        worn = sum(getattr(look, part) is not None for part in PARTS)
        if worn + 2 * (look.pattern != "plain") >= 3:
            return look


def _draw(dice: Dice, *, reserved: bool, pattern_chance: float, part_chance: float) -> Look:
    while True:
        colour, second = dice.sample(COLOURS, 2)
        pattern = dice.pick(PATTERNS) if dice.chance(pattern_chance) else "plain"
        parts = {
            part: dice.pick([name for name in COLOURS if name != colour])
            for part in PARTS
            if dice.chance(part_chance)
        }
        look = Look(colour, pattern, second if pattern != "plain" else None, **parts)
        if not look.is_plain and look.is_reserved == reserved:
            return look
