"""Drawing styles: how a picture is drawn, whatever it shows."""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from .dice import Dice
from .palette import RGB, mix, rgb_of

TONES = ("natural", "sepia", "blueprint", "pastel", "mono")
LINES = ("thin", "bold")
TEXTURES = ("smooth", "pixel", "hatched")
RESERVED_MODULUS = 5


@dataclass(frozen=True)
class Style:
    """Tone (colours), line (outline width) and texture (surface) of a whole picture."""

    tone: str = "natural"
    line: str = "thin"
    texture: str = "smooth"

    @property
    def is_natural(self) -> bool:
        """The style of a plain photo: what a prompt without a style means."""
        return self == Style()

    @property
    def words(self) -> tuple[str, ...]:
        """The style's words in a caption, such as ("sepia", "hatched")."""
        return tuple(
            word
            for word, usual in zip(astuple(self), astuple(Style()), strict=True)
            if word != usual
        )

    @property
    def is_reserved(self) -> bool:
        """Kept for style concepts: combinations of two words or more, by a stable hash."""
        if len(self.words) < 2:
            return False
        digest = hashlib.sha256("|".join(astuple(self)).encode()).digest()
        return int.from_bytes(digest[:8], "big") % RESERVED_MODULUS == 0


def all_styles() -> list[Style]:
    """Every combination but the natural one, in a fixed order."""
    styles = [Style(t, ln, x) for t in TONES for ln in LINES for x in TEXTURES]
    return [style for style in styles if not style.is_natural]


@lru_cache(maxsize=1)
def _by_use() -> tuple[list[Style], list[Style]]:
    """The styles for pretraining, and those kept for concepts."""
    styles = all_styles()
    return [s for s in styles if not s.is_reserved], [s for s in styles if s.is_reserved]


def pretraining_style(dice: Dice) -> Style:
    """A style that is not reserved; single words half of the time."""
    free, _ = _by_use()
    single = [style for style in free if len(style.words) == 1]
    return dice.pick(single) if dice.chance(0.5) else dice.pick(free)


def concept_style(dice: Dice) -> Style:
    """A reserved combination, for a personal style."""
    _, reserved = _by_use()
    return dice.pick(reserved)


@dataclass(frozen=True)
class Line:
    """Outlines: their width as a share of the picture's, and their colour, None for a darker tone
    of what they surround (thin dark lines would cost a small model more than all else)."""

    width: float
    ink: RGB | None

    def colour(self, fill: RGB) -> RGB:
        """The colour of the line around a part filled with `fill`."""
        return mix(fill, rgb_of("black"), 0.4) if self.ink is None else self.ink


def outline(style: Style) -> Line:
    """How a style draws outlines: bold ones in ink."""
    return Line(0.020, (30, 26, 30)) if style.line == "bold" else Line(0.008, None)


def finish(picture: Image.Image, style: Style) -> Image.Image:
    """Apply tone and texture to a rendered picture."""
    if style.texture == "pixel":
        picture = _mosaic(picture, picture.width // 32)
    pixels = np.asarray(picture, dtype=np.float32) / 255.0
    if style.texture == "hatched":
        pixels = _hatch(pixels)
    return Image.fromarray((_tone(pixels, style.tone).clip(0, 1) * 255 + 0.5).astype(np.uint8))


def _mosaic(picture: Image.Image, cell: int) -> Image.Image:
    small = (picture.width // cell, picture.height // cell)
    return picture.resize(small, Image.Resampling.BOX).resize(
        picture.size, Image.Resampling.NEAREST
    )


def _hatch(pixels: np.ndarray) -> np.ndarray:
    """Diagonal strokes about two latent cells apart, darker where the picture is darker."""
    height, width, _ = pixels.shape
    rows, columns = np.mgrid[0:height, 0:width] / width
    stroke = 0.5 + 0.5 * np.sin(2 * np.pi * (rows + columns) * 8.0)
    darkness = 1.0 - pixels.mean(axis=2)
    ink = (stroke < 0.25 + 0.5 * darkness).astype(np.float32)
    return pixels * (1.0 - 0.45 * ink[..., None]) + 0.12


_DUOTONE: dict[str, tuple[RGB, RGB]] = {
    "sepia": ((56, 34, 14), (250, 232, 196)),
    "blueprint": ((8, 26, 96), (214, 232, 255)),
    "mono": ((18, 18, 18), (248, 248, 248)),
}


def _tone(pixels: np.ndarray, tone: str) -> np.ndarray:
    if tone == "natural":
        return pixels
    if tone == "pastel":
        return 0.5 + 0.5 * pixels
    dark, light = (np.array(colour, dtype=np.float32) / 255.0 for colour in _DUOTONE[tone])
    grey = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return dark + (light - dark) * grey[..., None]


def shade(colour: RGB) -> RGB:
    """A darker tone of `colour`, for what lies behind."""
    return mix(colour, rgb_of("black"), 0.22)
