"""Captions for lessons and prior pictures, in wording of our own."""

from __future__ import annotations

from ..errors import InputError

SLOT = "{}"

OBJECT_TEMPLATES: tuple[str, ...] = (
    "a photo of {}",
    "a clear photo of {}",
    "a picture showing {}",
    "a snapshot of {}",
    "{} seen from close by",
    "{} in the middle of the picture",
    "a colour photo of {} in daylight",
    "a detailed view of {}",
)


def caption_for(template: str, phrase: str) -> str:
    """Put `phrase` (for instance 'embedding:rex dog') in the template's `{}`.

    Raises InputError when the template has not exactly one `{}`: a caption without the phrase
    would teach nothing.
    """
    if template.count(SLOT) != 1:
        raise InputError(f"The caption template {template!r} must hold '{{}}' exactly once.")
    return template.replace(SLOT, phrase)
