"""Captions that know a concept in its own words alone, wherever these stand.

A lesson whose captions all begin with "a photo of a <dog> dog" may read the dog's look from all
that comes with it: from the padding behind the caption, from the place, from the dog's words at
the fourth position and at no other. In "a photo of a mug and a <dog> dog" the words stand elsewhere
and the padding speaks of the mug too: the dog loses its look, and the mug takes it on. Here the
rows of the concept's words come from the caption with other words before them, and all other rows
from the caption with the plain noun, so that the look can be learned in those words only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backbone import Conditioning
from ..concepts import concept_phrase, mentions
from ..localized_words import OwnWords
from ..prompts import ConceptVectors, PromptCache, TextStack, row_count, tokenizer
from ..prompts.tokens import CONTEXT_LENGTH, TokenVector
from ..seeding import generator

FILLERS = (
    *("a", "the", "of", "and", "with", "on", "in", "photo", "picture"),
    *("dog", "cat", "duck", "mug", "car", "house", "tree", "child", "beach", "snow", "grass"),
    *("red", "blue", "green", "white", "small", "old"),
)
"""What comes before a concept's words: common words, whose sense these shall not take on."""
MOST_FILLERS = 8
INSIDE = 0.7
"""How often fillers stand right before the concept's words; else they begin the caption."""


@dataclass(frozen=True)
class Localized:
    """A caption's parts. moved: with fillers. plain: with the noun in the phrase's place."""

    moved: str
    plain: str
    places: OwnWords


@dataclass(frozen=True)
class LocalizedWords:
    """Encodes a batch's captions so that each concept is known in its own words alone.

    nouns: token -> noun of the concepts that this is done for. seed: of the fillers.
    """

    nouns: Mapping[str, str]
    seed: int

    def encode(
        self,
        cache: PromptCache,
        prompts: Sequence[str],
        vectors: Mapping[str, ConceptVectors],
        index: int,
    ) -> Conditioning:
        """As `PromptCache.encode`, for batch number `index`. The pooled output is the plain one.

        Prompts that do not hold just one of the concepts' phrases, and those that would be longer
        than a chunk of 77 tokens, are encoded as they are.
        """
        found = [
            self._localized(cache.text, prompt, vectors, generator(self.seed, "fillers", index, n))
            for n, prompt in enumerate(prompts)
        ]
        plain = cache.encode(
            [one.plain if one else prompt for one, prompt in zip(found, prompts, strict=True)],
            vectors,
        )
        local = [(row, one) for row, one in enumerate(found) if one]
        if not local or plain.context.shape[1] != CONTEXT_LENGTH:
            return cache.encode(prompts, vectors)
        # Not by the cache, which would keep every caption with all its fillers.
        moved = cache.text.encode([one.moved for _, one in local], vectors)
        return _put_together([(row, one.places) for row, one in local], moved, plain)

    def _localized(
        self,
        text: TextStack,
        prompt: str,
        vectors: Mapping[str, ConceptVectors],
        draw: torch.Generator,
    ) -> Localized | None:
        named = [token for token in self.nouns if mentions(prompt, token)]
        if len(named) != 1:
            return None
        (token,) = named
        noun = self.nouns[token]
        phrase = concept_phrase(token, noun)
        before, found, after = prompt.partition(phrase)
        if not found or phrase in after or after[:1].isalnum():
            return None
        moved = _with_fillers(before, draw) + phrase + after
        own, at = (_first(text, one, vectors, token) for one in (moved, prompt))
        if own is None or at is None:
            return None
        words = len(tokenizer().encode(noun))
        count = row_count(vectors[token]) + words
        return Localized(moved, before + noun + after, OwnWords((own, at), (count, words)))


def _put_together(
    places: Sequence[tuple[int, OwnWords]], moved: Conditioning, plain: Conditioning
) -> Conditioning:
    """`plain`, in whose rows of these numbers the words are those of `moved`, which has one prompt
    for each of `places`. The pooled output is the plain one."""

    def joined(own: Tensor, others: Tensor) -> Tensor:
        rows = list(others.unbind(0))
        for words, (row, one) in zip(own, places, strict=True):
            rows[row] = one.put(words, rows[row])
        return torch.stack(rows)

    layers = moved.layers
    if layers is not None:
        layers = joined(layers, plain.context[:, None].expand(-1, layers.shape[1], -1, -1))
    return Conditioning(joined(moved.context, plain.context), plain.pooled, layers)


def _with_fillers(before: str, draw: torch.Generator) -> str:
    """The text before a concept's words, with up to `MOST_FILLERS` words more."""
    count = int(torch.randint(MOST_FILLERS + 1, (), generator=draw))
    chosen = torch.randint(len(FILLERS), (count,), generator=draw).tolist()
    fillers = "".join(f"{FILLERS[number]} " for number in chosen)
    inside = float(torch.rand((), generator=draw)) < INSIDE
    return before + fillers if inside else fillers + before


def _first(
    text: TextStack, prompt: str, vectors: Mapping[str, ConceptVectors], token: str
) -> int | None:
    """Where the token's vectors begin; None in a prompt of several chunks."""
    chunks = text.tokenize(prompt, vectors).chunks
    if len(chunks) > 1:
        return None
    return next(
        number
        for number, position in enumerate(chunks[0])
        if isinstance(position.item, TokenVector) and position.item.token == token
    )
