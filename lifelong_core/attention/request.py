"""Asking for guidance when pictures are generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import InputError
from ..prompts import ConceptVectors, TextStack
from .guidance import Guide
from .settings import GuidanceSettings
from .words import Pair, PromptPlaces, find_pairs, prompt_tokens


@dataclass
class AttentionGuidance:
    """Guidance by attention maps for `generate`: `pairs` names what each prompt's picture shows.

    Give the pairs of every prompt, or one entry for all. Afterwards `guides` holds what was seen,
    one `Guide` per batch of pictures, in order.
    """

    settings: GuidanceSettings
    pairs: Sequence[Sequence[Pair]]
    guides: list[Guide] = field(default_factory=list)

    def places(
        self, text: TextStack, prompts: Sequence[str], vectors: Mapping[str, ConceptVectors]
    ) -> list[PromptPlaces]:
        """Where the pairs are in their prompts. Raises InputError when one is not there."""
        pairs = list(self.pairs) * (len(prompts) if len(self.pairs) == 1 else 1)
        if len(pairs) != len(prompts):
            raise InputError(
                f"There are {len(prompts)} prompts and the pairs of {len(pairs)}; give one list "
                "of pairs for each prompt, or one for all."
            )
        tokenized = [text.tokenize(prompt, vectors) for prompt in prompts]
        return [
            find_pairs(prompt_tokens(prompt), of)
            for prompt, of in zip(tokenized, pairs, strict=True)
        ]

    def guide(self, places: Sequence[PromptPlaces]) -> Guide:
        """A new guide for pictures with these places, kept in `guides`."""
        self.guides.append(Guide(self.settings, places))
        return self.guides[-1]
