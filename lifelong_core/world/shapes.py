"""The nouns of the demo world as polygons in a unit box: x right, y down, ground at y = 1."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, radians, sin

Point = tuple[float, float]
Polygon = tuple[Point, ...]


@dataclass(frozen=True)
class Part:
    """One polygon and what fills it: `body`, `accent`, `light`, or a fixed colour by name."""

    fill: str
    points: Polygon


@dataclass(frozen=True)
class Shape:
    """A noun: its parts from back to front, the places where extras sit, and its aspect."""

    parts: tuple[Part, ...]
    hat: tuple[float, float, float]  # x and y of the brim's middle, width of the brim
    scarf: Polygon
    patch: tuple[float, float, float]  # centre and radius
    accent_word: str  # how a caption calls the accent part


def ellipse(
    x: float, y: float, rx: float, ry: float, turn: float = 0.0, steps: int = 28
) -> Polygon:
    """An ellipse around (x, y) with radii rx, ry, turned clockwise by `turn` degrees."""
    c, s = cos(radians(turn)), sin(radians(turn))
    angles = [2 * pi * step / steps for step in range(steps)]
    return tuple(
        (x + rx * cos(a) * c - ry * sin(a) * s, y + rx * cos(a) * s + ry * sin(a) * c)
        for a in angles
    )


def box(left: float, top: float, right: float, bottom: float, corner: float = 0.0) -> Polygon:
    """A rectangle with cut corners of size `corner`."""
    k = corner
    if not k:
        return ((left, top), (right, top), (right, bottom), (left, bottom))
    return (
        (left + k, top), (right - k, top), (right, top + k), (right, bottom - k),
        (right - k, bottom), (left + k, bottom), (left, bottom - k), (left, top + k),
    )  # fmt: skip


def band(points: Polygon, width: float) -> Polygon:
    """A line through `points` made `width` thick (sides offset along the neighbours' normal)."""
    upper, lower = [], []
    for i, (x, y) in enumerate(points):
        ax, ay = points[max(i - 1, 0)]
        bx, by = points[min(i + 1, len(points) - 1)]
        length = ((bx - ax) ** 2 + (by - ay) ** 2) ** 0.5
        nx, ny = -(by - ay) / length * width / 2, (bx - ax) / length * width / 2
        upper.append((x + nx, y + ny))
        lower.append((x - nx, y - ny))
    return tuple(upper + lower[::-1])


def _eye(x: float, y: float, size: float = 0.034) -> tuple[Part, ...]:
    return (Part("ink", ellipse(x, y, size, size * 1.15, steps=14)),)


_DOG = Shape(
    parts=(
        Part("body", band(((0.16, 0.56), (0.07, 0.42), (0.03, 0.27)), 0.08)),
        Part("shade", box(0.27, 0.68, 0.37, 0.98, 0.02)),
        Part("shade", box(0.62, 0.68, 0.72, 0.98, 0.02)),
        Part("body", ellipse(0.43, 0.60, 0.33, 0.19)),
        Part("body", box(0.13, 0.64, 0.25, 1.0, 0.03)),
        Part("body", box(0.50, 0.64, 0.62, 1.0, 0.03)),
        Part("body", ellipse(0.73, 0.33, 0.21, 0.20)),
        Part("light", ellipse(0.90, 0.41, 0.11, 0.09)),
        Part("ink", ellipse(0.98, 0.37, 0.035, 0.032, steps=14)),
        *_eye(0.80, 0.29),
        Part("accent", ellipse(0.60, 0.36, 0.09, 0.19, 12)),
    ),
    hat=(0.74, 0.15, 0.34),
    scarf=((0.55, 0.47), (0.60, 0.40), (0.88, 0.53), (0.82, 0.62), (0.74, 0.60), (0.73, 0.80),
           (0.61, 0.78), (0.64, 0.58)),
    patch=(0.36, 0.58, 0.13),
    accent_word="ear",
)  # fmt: skip
_CAT = Shape(
    parts=(
        Part("body", band(((0.30, 0.92), (0.12, 0.86), (0.07, 0.66), (0.16, 0.50)), 0.09)),
        Part("body", ellipse(0.50, 0.73, 0.25, 0.27)),
        Part("light", ellipse(0.53, 0.76, 0.12, 0.17)),
        Part("body", ellipse(0.40, 0.95, 0.11, 0.055)),
        Part("body", ellipse(0.64, 0.95, 0.11, 0.055)),
        Part("body", ((0.31, 0.24), (0.33, 0.0), (0.52, 0.16))),
        Part("accent", ((0.55, 0.16), (0.75, 0.0), (0.77, 0.26))),
        Part("body", ellipse(0.54, 0.32, 0.24, 0.20)),
        Part("lime", ellipse(0.45, 0.30, 0.05, 0.06, steps=14)),
        Part("lime", ellipse(0.64, 0.30, 0.05, 0.06, steps=14)),
        *_eye(0.455, 0.30, 0.024),
        *_eye(0.645, 0.30, 0.024),
        Part("rose", ((0.51, 0.37), (0.58, 0.37), (0.545, 0.42))),
    ),
    hat=(0.54, 0.14, 0.32),
    scarf=((0.33, 0.47), (0.75, 0.47), (0.77, 0.57), (0.48, 0.59), (0.46, 0.80), (0.35, 0.79),
           (0.37, 0.59), (0.32, 0.57)),
    patch=(0.62, 0.70, 0.12),
    accent_word="ear",
)  # fmt: skip
_DUCK = Shape(
    parts=(
        Part("beak", box(0.36, 0.84, 0.42, 0.99)),
        Part("beak", box(0.54, 0.84, 0.60, 0.99)),
        Part("beak", ellipse(0.41, 0.98, 0.09, 0.03)),
        Part("beak", ellipse(0.59, 0.98, 0.09, 0.03)),
        Part("body", ((0.02, 0.42), (0.26, 0.52), (0.18, 0.74))),
        Part("body", ellipse(0.46, 0.65, 0.36, 0.23)),
        Part("body", ((0.60, 0.30), (0.84, 0.36), (0.80, 0.66), (0.56, 0.60))),
        Part("beak", ((0.86, 0.22), (1.0, 0.32), (0.86, 0.38))),
        Part("body", ellipse(0.72, 0.27, 0.18, 0.17)),
        *_eye(0.78, 0.22),
        Part("accent", ellipse(0.40, 0.64, 0.21, 0.13, -8)),
    ),
    hat=(0.71, 0.12, 0.30),
    scarf=((0.57, 0.42), (0.87, 0.44), (0.86, 0.54), (0.72, 0.54), (0.70, 0.76), (0.59, 0.75),
           (0.61, 0.54), (0.56, 0.52)),
    patch=(0.58, 0.76, 0.10),
    accent_word="wing",
)  # fmt: skip
_TEDDYBEAR = Shape(
    parts=(
        Part("body", ellipse(0.30, 0.10, 0.10, 0.10)),
        Part("accent", ellipse(0.70, 0.10, 0.10, 0.10)),
        Part("body", ellipse(0.20, 0.58, 0.10, 0.18, 28)),
        Part("body", ellipse(0.80, 0.58, 0.10, 0.18, -28)),
        Part("body", ellipse(0.50, 0.66, 0.26, 0.27)),
        Part("light", ellipse(0.50, 0.70, 0.15, 0.16)),
        Part("body", ellipse(0.31, 0.91, 0.14, 0.09)),
        Part("body", ellipse(0.69, 0.91, 0.14, 0.09)),
        Part("body", ellipse(0.50, 0.27, 0.24, 0.21)),
        Part("light", ellipse(0.50, 0.34, 0.11, 0.08)),
        Part("ink", ellipse(0.50, 0.31, 0.04, 0.03, steps=14)),
        *_eye(0.41, 0.23),
        *_eye(0.59, 0.23),
    ),
    hat=(0.50, 0.09, 0.32),
    scarf=((0.29, 0.43), (0.71, 0.43), (0.72, 0.53), (0.66, 0.54), (0.67, 0.76), (0.55, 0.76),
           (0.55, 0.54), (0.28, 0.53)),
    patch=(0.37, 0.66, 0.12),
    accent_word="ear",
)  # fmt: skip
_BACKPACK = Shape(
    parts=(
        Part("ink", band(((0.38, 0.14), (0.42, 0.03), (0.58, 0.03), (0.62, 0.14)), 0.05)),
        Part("shade", box(0.06, 0.48, 0.22, 0.92, 0.05)),
        Part("shade", box(0.78, 0.48, 0.94, 0.92, 0.05)),
        Part("body", ((0.16, 0.36), (0.22, 0.20), (0.36, 0.11), (0.50, 0.09), (0.64, 0.11),
                      (0.78, 0.20), (0.84, 0.36), (0.86, 0.94), (0.80, 1.0), (0.20, 1.0),
                      (0.14, 0.94))),
        Part("light", band(((0.24, 0.42), (0.50, 0.37), (0.76, 0.42)), 0.05)),
        Part("accent", box(0.26, 0.56, 0.74, 0.90, 0.05)),
        Part("ink", box(0.30, 0.62, 0.70, 0.655)),
    ),
    hat=(0.50, 0.11, 0.34),
    scarf=((0.14, 0.42), (0.86, 0.42), (0.86, 0.53), (0.40, 0.53), (0.40, 0.76), (0.28, 0.76),
           (0.28, 0.53), (0.14, 0.53)),
    patch=(0.62, 0.30, 0.12),
    accent_word="pocket",
)  # fmt: skip
_MUG = Shape(
    parts=(
        Part("accent", band(((0.66, 0.36), (0.86, 0.34), (0.95, 0.50), (0.90, 0.68), (0.66, 0.76)),
                            0.10)),
        Part("body", ((0.08, 0.20), (0.70, 0.20), (0.68, 0.92), (0.60, 1.0), (0.18, 1.0),
                      (0.10, 0.92))),
        Part("light", ellipse(0.39, 0.20, 0.31, 0.10)),
        Part("coffee", ellipse(0.39, 0.21, 0.25, 0.07)),
    ),
    hat=(0.39, 0.14, 0.44),
    scarf=((0.08, 0.50), (0.70, 0.50), (0.69, 0.62), (0.32, 0.62), (0.31, 0.86), (0.19, 0.86),
           (0.20, 0.62), (0.09, 0.62)),
    patch=(0.50, 0.78, 0.13),
    accent_word="handle",
)  # fmt: skip
_CAR = Shape(
    parts=(
        Part("accent", ((0.22, 0.50), (0.34, 0.24), (0.70, 0.24), (0.84, 0.50))),
        Part("glass", ((0.30, 0.49), (0.38, 0.30), (0.50, 0.30), (0.50, 0.49))),
        Part("glass", ((0.55, 0.49), (0.55, 0.30), (0.66, 0.30), (0.75, 0.49))),
        Part("body", ((0.02, 0.56), (0.10, 0.48), (0.88, 0.48), (0.98, 0.56), (0.99, 0.80),
                      (0.94, 0.85), (0.06, 0.85), (0.01, 0.80))),
        Part("ink", ellipse(0.24, 0.85, 0.13, 0.13)),
        Part("steel", ellipse(0.24, 0.85, 0.06, 0.06, steps=16)),
        Part("ink", ellipse(0.76, 0.85, 0.13, 0.13)),
        Part("steel", ellipse(0.76, 0.85, 0.06, 0.06, steps=16)),
        Part("lamp", ellipse(0.95, 0.62, 0.035, 0.05, steps=14)),
    ),
    hat=(0.52, 0.25, 0.40),
    scarf=((0.01, 0.60), (0.99, 0.60), (0.99, 0.71), (0.42, 0.71), (0.41, 0.84), (0.30, 0.84),
           (0.31, 0.71), (0.01, 0.71)),
    patch=(0.52, 0.67, 0.13),
    accent_word="roof",
)  # fmt: skip
_HOUSE = Shape(
    parts=(
        Part("brick", box(0.70, 0.06, 0.82, 0.34)),
        Part("body", box(0.12, 0.42, 0.88, 1.0)),
        Part("accent", ((0.02, 0.45), (0.50, 0.04), (0.98, 0.45))),
        Part("door", box(0.42, 0.68, 0.60, 1.0)),
        Part("glass", box(0.19, 0.56, 0.36, 0.74)),
        Part("glass", box(0.66, 0.56, 0.82, 0.74)),
    ),
    hat=(0.50, 0.12, 0.34),
    scarf=((0.12, 0.44), (0.88, 0.44), (0.88, 0.54), (0.40, 0.54), (0.40, 0.74), (0.28, 0.74),
           (0.28, 0.54), (0.12, 0.54)),
    patch=(0.74, 0.86, 0.11),
    accent_word="roof",
)  # fmt: skip

SHAPES: dict[str, Shape] = {
    "dog": _DOG,
    "cat": _CAT,
    "duck": _DUCK,
    "teddybear": _TEDDYBEAR,
    "backpack": _BACKPACK,
    "mug": _MUG,
    "car": _CAR,
    "house": _HOUSE,
}
NOUNS = tuple(SHAPES)
