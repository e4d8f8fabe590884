"""What a method is measured on: concepts in their order, with the pictures to compare to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..concepts import ConceptTask, make_task
from ..errors import InputError
from ..files import content_hash
from ..images import fit, load_images
from ..world.streams import Personal, PersonalStyle, toys5, toys10, toys50
from .prompts import evaluation_prompts, style_prompts

PHOTOS, UNSEEN = 5, 20
TOYS: dict[str, Callable[[int], list[Personal]]] = {
    "toys5": lambda seed: list(toys5(seed)),
    "toys10": toys10,
    "toys50": lambda seed: list(toys50(seed)),
}


@dataclass(frozen=True)
class Subject:
    """One concept of a stream.

    real: pictures [R, 3, H, W] that the metrics compare to. prompts, plain: the same twenty
    prompts with the concept's phrase, and with the plain noun for the base model.
    """

    task: ConceptTask
    real: Tensor
    prompts: tuple[str, ...]
    plain: tuple[str, ...]


@dataclass(frozen=True)
class Stream:
    """Concepts in the order in which they are taught. `seed` seeds lessons and noise too."""

    name: str
    seed: int
    subjects: tuple[Subject, ...]

    @cached_property
    def content_hash(self) -> str:
        """Equal for equal lessons, real pictures and prompts. Made once: it reads all pictures."""
        parts = [(s.task.content_hash, s.real, s.prompts, s.plain) for s in self.subjects]
        return content_hash(self.name, self.seed, parts)


def stream_named(source: str, seed: int, *, size: int) -> Stream:
    """`toys5`, `toys10`, `toys50`, or the path of a folder with one folder of photos per concept.

    Toys are taught from 5 photos and compared to 20 renders that no lesson sees. Real photos are
    few: all of them are learned and compared to, as the papers do. Raises InputError.
    """
    if source in TOYS:
        subjects = [_toy(personal, size) for personal in TOYS[source](seed)]
        return Stream(source, seed, tuple(subjects))
    folder = Path(source)
    if not folder.is_dir():
        raise InputError(
            f"Stream {source!r} is neither a folder nor one of {', '.join(TOYS)}. Give one of "
            "them, or a folder that holds one folder of photos per concept."
        )
    concepts = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if not concepts:
        raise InputError(f"Folder {folder.name} holds no folders; expected one per concept.")
    return Stream(_plain_name(folder), seed, tuple(_photos(path, size) for path in concepts))


def _toy(personal: Personal, size: int) -> Subject:
    task = make_task(
        personal.token, personal.noun, personal.photos(PHOTOS), personal.captions(PHOTOS), size=size
    )
    unseen = torch.stack([fit(image, size) for image in personal.photos(UNSEEN, unseen=True)])
    return _subject(task, unseen, style=isinstance(personal, PersonalStyle))


def _photos(folder: Path, size: int) -> Subject:
    """A folder named `<noun>` or `<noun>_<more>`; the default caption, as in DreamBooth."""
    images = load_images(folder)
    if len(images) < 2:
        raise InputError(f"Folder {folder.name} has one photo; comparing needs at least two.")
    noun = folder.name.split("_")[0]
    task = make_task(f"my-{_plain_name(folder)}", noun, images, size=size)
    return _subject(task, task.images, style=False)


def _subject(task: ConceptTask, real: Tensor, *, style: bool) -> Subject:
    make = style_prompts if style else evaluation_prompts
    return Subject(task, real, tuple(make(task.phrase)), tuple(make(task.noun)))


def _plain_name(folder: Path) -> str:
    """The folder's name in small letters, digits and '_'."""
    name = folder.resolve().name.lower()
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)
