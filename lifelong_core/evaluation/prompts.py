"""Prompts that ask for a concept in other places and in other styles than its photos show."""

from __future__ import annotations

from ..world.backgrounds import PHRASES

STYLES = ("sepia", "pastel", "mono", "bold")


def evaluation_prompts(phrase: str) -> list[str]:
    """Twenty prompts with `phrase` ("embedding:my-dog dog", or "dog" for the base model).

    Twelve ask for a plain picture before each of the six backgrounds in two wordings, eight for
    each of four drawing styles before two backgrounds.
    """
    places = list(PHRASES.values())
    plain = [f"a photo of a {phrase} {place}" for place in places]
    short = [f"a {phrase} {place}" for place in places]
    drawn = [
        f"a {style} drawing of a {phrase} {places[(2 * number + offset) % len(places)]}"
        for number, style in enumerate(STYLES)
        for offset in (0, 1)
    ]
    return [*plain, *short, *drawn]
