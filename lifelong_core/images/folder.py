"""Folders and lists of picture files, and the captions that lie beside them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..errors import InputError
from ..files import content_hash
from .decode import load_image

logger = logging.getLogger(__name__)

Source = Path | str | Sequence[Path | str]
"""A folder, one file, or a list of files."""

MAX_FILES = 100
MAX_CAPTION = 2000
TEXT = frozenset((".txt", ".caption", ".md", ".json", ".jsonl", ".csv", ".yaml", ".yml", ".toml"))
LITTER = frozenset(("thumbs.db", "desktop.ini"))
"""Files that systems leave in every folder with pictures."""


def image_files(source: Source) -> list[Path]:
    """The files of `source` that must be pictures: sorted for a folder, as given for a list.

    Of a folder, text files, hidden files and subfolders are passed over; every other file counts.

    Raises InputError when nothing is left, a file or folder is missing, or there are over 100.
    """
    if isinstance(source, (str, Path)):
        path = Path(source)
        files = _folder_files(path) if path.is_dir() else [path]
        name = f"Folder {path.name}"
    else:
        files, name = [Path(item) for item in source], "The list"
    if not files:
        raise InputError(f"{name} has no pictures. Give at least one, better 3 to 5.")
    if len(files) > MAX_FILES:
        raise InputError(
            f"{name} has {len(files)} pictures, more than {MAX_FILES}. A concept is learned from "
            "3 to 5 good ones; choose those."
        )
    return files


def load_images(source: Source) -> list[Tensor]:
    """The pictures of a folder, one file or a list of files as RGB [3, H, W] in [0, 1].

    Order as `image_files`, decoding as `load_image`. A picture given twice is kept, with a warning
    in the log, since it counts double in training.

    Raises InputError, naming the file, for whatever cannot be used.
    """
    files = image_files(source)
    images = [load_image(path) for path in files]
    seen: dict[str, Path] = {}
    for path, image in zip(files, images, strict=True):
        first = seen.setdefault(content_hash(image), path)
        if first is not path:
            logger.warning("%s shows the same picture as %s.", path.name, first.name)
    return images


def load_captions(source: Source) -> list[str | None]:
    """For each picture of `image_files(source)` the text of `<same name>.txt`, None without one.

    Line breaks become spaces; a text file without text counts as none.

    Raises InputError, naming the file, when a caption is not UTF-8 or over 2000 characters.
    """
    return [_caption(path.with_suffix(".txt")) for path in image_files(source)]


def _folder_files(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir(), key=lambda path: (path.name.casefold(), path.name))
    except OSError as error:
        raise InputError(f"Folder {folder.name} cannot be read: {error}.") from error
    return [
        path
        for path in entries
        if path.is_file()
        and not path.name.startswith(".")
        and path.suffix.lower() not in TEXT
        and path.name.lower() not in LITTER
    ]


def _caption(path: Path) -> str | None:
    try:
        text = " ".join(path.read_text(encoding="utf-8-sig").split())
    except FileNotFoundError:
        return None
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"Caption {path.name} cannot be read: {error}. Save it as plain UTF-8 text."
        ) from error
    if len(text) > MAX_CAPTION:
        raise InputError(
            f"Caption {path.name} has {len(text)} characters, more than {MAX_CAPTION}. "
            "Describe the picture in a sentence."
        )
    return text or None
