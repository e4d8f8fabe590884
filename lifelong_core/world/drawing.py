"""Drawing one object: polygons of its shape, filled as its look says, onto a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, radians, sin

from PIL import Image, ImageChops, ImageDraw

from .looks import Look
from .palette import RGB, mix, rgb_of
from .shapes import SHAPES, Polygon, Shape, box, ellipse
from .styles import Line, shade

Paint = Callable[[str], RGB]  # colour name -> the colour of this object

_FIXED: dict[str, RGB] = {
    "ink": (34, 30, 36),
    "lime": (176, 214, 76),
    "rose": (222, 120, 136),
    "beak": (246, 152, 40),
    "coffee": (74, 46, 32),
    "glass": (184, 222, 244),
    "steel": (196, 200, 206),
    "lamp": (252, 236, 150),
    "brick": (150, 84, 62),
    "door": (112, 70, 42),
}

_PATTERNS: dict[str, tuple[Polygon, ...]] = {
    "plain": (),
    "two-tone": (box(0.5, -0.3, 1.4, 1.3),),
    "striped": tuple(box(x, -0.3, x + 0.13, 1.3) for x in (-0.02, 0.24, 0.50, 0.76)),
    "spotted": tuple(
        ellipse(x + 0.11 * (row % 2), y, 0.075, 0.075, steps=16)
        for row, y in enumerate((0.05, 0.24, 0.43, 0.62, 0.81, 1.0))
        for x in (0.04, 0.26, 0.48, 0.70, 0.92)
    ),
}


@dataclass(frozen=True)
class Placement:
    """Where an object stands: middle and ground (shares of the picture), size, flip, tilt."""

    x: float
    ground: float
    size: float
    flip: bool = False
    tilt: float = 0.0

    def to_pixels(self, points: Polygon, width: int) -> list[tuple[float, float]]:
        """Points of the unit box in pixels of a picture `width` wide."""
        c, s = cos(radians(self.tilt)), sin(radians(self.tilt))
        side = -1.0 if self.flip else 1.0
        pixels = []
        for x, y in points:
            dx, dy = (x - 0.5) * self.size * side, (y - 1.0) * self.size
            pixels.append(
                ((self.x + dx * c - dy * s) * width, (self.ground + dx * s + dy * c) * width)
            )
        return pixels


class _Pen:
    """Fills and outlines polygons of one object and remembers what it covered."""

    def __init__(self, picture: Image.Image, place: Placement, line: Line) -> None:
        self.picture = picture
        self.place = place
        self.line = line
        self.covered = Image.new("L", picture.size)
        self.draw = ImageDraw.Draw(picture)

    def mask(self, *polygons: Polygon) -> Image.Image:
        mask = Image.new("L", self.picture.size)
        draw = ImageDraw.Draw(mask)
        for polygon in polygons:
            draw.polygon(self.place.to_pixels(polygon, self.picture.width), fill=255)
        return mask

    def fill(self, polygon: Polygon, colour: RGB) -> None:
        pixels = self.place.to_pixels(polygon, self.picture.width)
        self.draw.polygon(pixels, fill=colour)
        ImageDraw.Draw(self.covered).polygon(pixels, fill=255)

    def overlay(self, mask: Image.Image, colour: RGB) -> None:
        self.picture.paste(colour, mask=mask)

    def outline(self, polygon: Polygon, colour: RGB) -> None:
        pixels = self.place.to_pixels(polygon, self.picture.width)
        width = max(1, round(self.line.width * self.picture.width))
        self.draw.line([*pixels, pixels[0]], fill=self.line.colour(colour), width=width)


def draw_object(
    picture: Image.Image,
    noun: str,
    look: Look,
    place: Placement,
    paint: Paint,
    line: Line,
) -> Image.Image:
    """Draw `noun` dressed in `look` onto `picture`; returns its mask (mode L, 255 inside)."""
    shape = SHAPES[noun]
    pen = _Pen(picture, place, line)
    pattern = pen.mask(*_PATTERNS[look.pattern]) if look.pattern != "plain" else None
    patch = pen.mask(_patch(shape)) if look.patch else None
    for part in shape.parts:
        colour = _fill_colour(part.fill, look, paint)
        pen.fill(part.points, colour)
        if part.fill == "body" and (pattern or patch):
            inside = pen.mask(part.points)
            if pattern and look.second:
                pen.overlay(ImageChops.multiply(inside, pattern), paint(look.second))
            if patch and look.patch:
                pen.overlay(ImageChops.multiply(inside, patch), paint(look.patch))
        pen.outline(part.points, colour)
    if look.scarf:
        pen.fill(shape.scarf, paint(look.scarf))
        pen.outline(shape.scarf, paint(look.scarf))
    if look.hat:
        for polygon in _hat(shape):
            pen.fill(polygon, paint(look.hat))
            pen.outline(polygon, paint(look.hat))
    return pen.covered


def _fill_colour(fill: str, look: Look, paint: Paint) -> RGB:
    if fill in _FIXED:
        return _FIXED[fill]
    body = paint(look.colour)
    if fill == "accent":
        return paint(look.accent) if look.accent else shade(body)
    if fill == "light":
        return mix(body, rgb_of("white"), 0.6)
    return shade(body) if fill == "shade" else body


def _patch(shape: Shape) -> Polygon:
    x, y, radius = shape.patch
    return ellipse(x, y, radius, radius)


def _hat(shape: Shape) -> tuple[Polygon, Polygon]:
    """A brim and a tall crown, large enough to survive eight pixels per latent cell."""
    x, y, width = shape.hat
    brim = box(x - width / 2, y - 0.055, x + width / 2, y + 0.015, 0.015)
    crown = box(x - width * 0.32, y - 0.22, x + width * 0.32, y - 0.05)
    return brim, crown
