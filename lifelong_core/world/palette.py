"""Named colours of the demo world."""

from __future__ import annotations

from .dice import Dice

RGB = tuple[int, int, int]

# The eight that plain objects wear are far apart, so that a judge and an eye can name them.
PLAIN_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
COLOURS = (*PLAIN_COLOURS, "teal", "brown", "gray", "black")

_RGB: dict[str, RGB] = {
    "red": (214, 38, 36),
    "orange": (243, 138, 28),
    "yellow": (248, 222, 52),
    "green": (44, 150, 58),
    "blue": (40, 86, 214),
    "purple": (124, 44, 168),
    "pink": (248, 150, 196),
    "white": (246, 246, 246),
    "teal": (38, 168, 164),
    "brown": (124, 76, 42),
    "gray": (140, 142, 148),
    "black": (38, 38, 42),
}
JITTER = 9.0


def clamp(value: float) -> int:
    """A colour channel in 0..255."""
    return max(0, min(255, round(value)))


def rgb_of(name: str) -> RGB:
    """The centre of a named colour."""
    return _RGB[name]


def jittered(colour: RGB, dice: Dice, spread: float = JITTER) -> RGB:
    """`colour` moved by at most `spread` per channel."""
    red, green, blue = (clamp(channel + dice.between(-spread, spread)) for channel in colour)
    return red, green, blue


def mix(first: RGB, second: RGB, share: float) -> RGB:
    """`first` with `share` (0..1) of `second`."""
    red, green, blue = (clamp(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def any_rgb(dice: Dice) -> RGB:
    """A colour from the whole cube, for training what must carry every look."""
    red, green, blue = (int(dice.between(16, 250)) for _ in range(3))
    return red, green, blue
