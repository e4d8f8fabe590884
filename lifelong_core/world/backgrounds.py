"""Six flat backgrounds, each with its phrase for captions."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from .dice import Dice
from .palette import RGB, jittered

PHRASES: dict[str, str] = {
    "beach": "on the beach",
    "grass": "on grass",
    "snow": "in the snow",
    "night": "at night",
    "room": "in a room",
    "desert": "in the desert",
}
BACKGROUNDS = tuple(PHRASES)

# Top and bottom of the sky (or wall), and the ground.
_SKY: dict[str, tuple[RGB, RGB, RGB]] = {
    "beach": ((118, 196, 246), (206, 236, 250), (236, 214, 158)),
    "grass": ((130, 200, 248), (214, 240, 252), (98, 178, 74)),
    "snow": ((176, 190, 208), (214, 222, 232), (240, 244, 250)),
    "night": ((16, 18, 52), (40, 40, 92), (26, 44, 46)),
    "room": ((214, 190, 176), (222, 200, 188), (150, 104, 78)),
    "desert": ((250, 196, 120), (254, 226, 170), (214, 158, 92)),
}


def draw_background(name: str, size: int, dice: Dice) -> tuple[Image.Image, float]:
    """A `size` x `size` picture of background `name`, and the height of its ground line (0..1)."""
    top, bottom, ground = (jittered(colour, dice, 7) for colour in _SKY[name])
    horizon = dice.between(0.52, 0.66)
    fade = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    sky = np.array(top) + (np.array(bottom) - np.array(top)) * fade
    picture = Image.fromarray(np.broadcast_to(sky, (size, size, 3)).astype(np.uint8).copy())
    draw = ImageDraw.Draw(picture)
    line = horizon * size
    draw.rectangle((0, line, size, size), fill=ground)
    x = dice.between(0.12, 0.88) * size
    if name == "beach":
        draw.rectangle((0, line - 0.13 * size, size, line), fill=jittered((30, 112, 186), dice, 7))
        _disc(draw, x, 0.13 * size, 0.065 * size, (255, 240, 150))
    elif name == "night":
        _disc(draw, x, 0.14 * size, 0.07 * size, (246, 240, 206))
    elif name == "room":
        half = 0.11 * size
        draw.rectangle((x - half, 0.06 * size, x + half, 0.30 * size), fill=(110, 74, 52))
        inner = 0.085 * size
        draw.rectangle((x - inner, 0.085 * size, x + inner, 0.275 * size), fill=(196, 226, 244))
    return picture, horizon


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: RGB) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
