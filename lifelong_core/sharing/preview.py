"""The preview picture beside a LoRA, and its thumbnail inside the file's metadata."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image, ImageOps
from torch import Tensor

from ..errors import InputError
from ..files import atomic_write

THUMBNAIL = 256
"""Side of the thumbnail, as the ModelSpec asks."""


def to_picture(preview: Tensor) -> Image.Image:
    """[3, H, W] in [0, 1] as an 8-bit picture. Raises InputError for other shapes or NaN."""
    if preview.dim() != 3 or preview.shape[0] != 3 or 0 in preview.shape:
        raise InputError(
            f"The preview has shape {list(preview.shape)}; expected one picture [3, height, width]."
        )
    if not bool(preview.isfinite().all()):
        raise InputError("The preview has values that are not finite; make the picture again.")
    levels = (preview.detach().float().clamp(0, 1) * 255).round().byte()
    return Image.fromarray(levels.permute(1, 2, 0).cpu().contiguous().numpy())


def thumbnail_uri(picture: Image.Image) -> str:
    """The whole picture, on white, as a 256 × 256 JPEG in a data URI."""
    small = ImageOps.pad(picture, (THUMBNAIL, THUMBNAIL), color=(255, 255, 255))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def write_png(picture: Image.Image, path: Path) -> Path:
    """Write `picture` atomically. Raises FileError."""
    return atomic_write(path, lambda temporary: picture.save(temporary, "PNG"))
