"""One picture file to one tensor.

Colour profiles are ignored, as ComfyUI's own LoadImage does, so that a file gives the same picture
in the library and through the stock nodes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import InputError
from .tensors import check_side, on_white, resize

MAX_PIXELS = 150_000_000
"""Files that claim more pixels are refused before they are decoded."""

KEEP_SIDE = 1536
"""Larger pictures are reduced to this shorter side: enough to crop the largest training size."""

KEEP_PIXELS = 4 * KEEP_SIDE**2
"""Bound for strips, which are long without having a large shorter side."""

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "HEIF", "TIFF", "BMP", "GIF", "PPM", "TGA")
"""Pillow's other readers (some run external programs) are not needed for photos."""

HEIF_BRANDS = frozenset((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"))
ADVICE = "Save it as JPEG or PNG and try again."


def load_image(path: Path | str) -> Tensor:
    """Read a picture file as RGB [3, H, W] in [0, 1], upright, any transparency laid on white.

    Grey, palette, CMYK and 16-bit files are converted (of 16-bit colour the upper 8 bits are
    read); of animations the first frame is read; a shorter side over 1536 pixels is reduced.

    Raises InputError, naming the file, when it is missing, no picture, cut short, broken, of an
    unsupported kind, smaller than 64 pixels on a side or larger than 150 million pixels.
    """
    path = Path(path)
    Image.init()
    readers = [name for name in FORMATS if name in Image.OPEN]
    try:
        with _strict_decoding(), Image.open(path, formats=readers) as image:
            _check_size(path.name, image.size)
            image.draft(image.mode, _kept_size(image.size))
            return _to_tensor(path.name, image)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(_why_unknown(path)) from error
    except Image.DecompressionBombError as error:
        raise InputError(_too_large(path.name)) from error
    # Readers of damaged files raise almost anything; whatever it is, this file cannot be used.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(
                f"Picture {path.name} in {path.parent} cannot be opened: {error.strerror}."
            ) from error
        raise InputError(
            f"{path.name} cannot be read: the file is cut short or damaged ({error}). "
            "Copy it again from its source, or leave it out."
        ) from error


@contextmanager
def _strict_decoding() -> Iterator[None]:
    """Make Pillow refuse cut files, and leave the size limit to `_check_size`, without warnings.

    Other node packs switch Pillow's tolerance for cut files on for the whole process; a picture
    whose lower half is grey must not be learned. The old setting comes back afterwards.
    """
    tolerant = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerant


def _check_size(name: str, size: tuple[int, int]) -> None:
    width, height = size
    check_side(name, height, width)
    if width * height > MAX_PIXELS:
        raise InputError(_too_large(name, f" ({width} x {height})"))


def _too_large(name: str, found: str = "") -> str:
    return (
        f"{name} is too large{found}: at most {MAX_PIXELS:,} pixels can be read. "
        "Use a smaller copy; 2000 x 2000 is plenty."
    )


def _kept_size(size: tuple[int, int]) -> tuple[int, int]:
    """`size` reduced, in proportion, to what is kept in memory."""
    width, height = size
    scale = min(1.0, KEEP_SIDE / min(size), math.sqrt(KEEP_PIXELS / (width * height)))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _to_tensor(name: str, image: Image.Image) -> Tensor:
    image.load()
    upright = ImageOps.exif_transpose(image)
    width, height = _kept_size(upright.size)
    if upright.mode.startswith("I;16") or (upright.mode == "I" and image.format == "PNG"):
        grey = torch.from_numpy(np.asarray(upright).astype(np.float32) / 65535.0)
        return resize(grey.unsqueeze(0), (height, width)).expand(3, -1, -1).clone()
    if upright.mode in ("I", "F"):
        raise InputError(f"{name} holds 32-bit values without a known range. {ADVICE}")
    mode = "RGBA" if upright.has_transparency_data else "RGB"
    pixels = upright.convert(mode).resize(
        (width, height), Image.Resampling.LANCZOS, reducing_gap=2.0
    )
    tensor = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255.0
    return on_white(tensor) if mode == "RGBA" else tensor.contiguous()


def _why_unknown(path: Path) -> str:
    with open(path, "rb") as handle:
        start = handle.read(16)
    if not start:
        return f"{path.name} is empty (0 bytes). Copy it again from its source, or leave it out."
    if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS:
        return f"{path.name} is a HEIC picture, which cannot be read here. {ADVICE}"
    return f"{path.name} is not a picture of a known kind, or its start is damaged. {ADVICE}"
