"""Prompts that know concepts in their own words alone, as lessons with `localized_words` teach it.

The rows of a concept's words come from a prompt that names it and no other, all rows of other words
from the one with the plain nouns. In "a photo of a <dog> dog and a cat" as it is, every row behind
the dog's words tells of the dog: the cat takes on its look, or is not drawn at all. (Feng et al.
2023, Structured Diffusion Guidance, also put words that were encoded apart into a prompt.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .attention.words import PromptToken, prompt_tokens
from .concepts import Concept, mentions, without_mentions
from .prompts import ConceptVectors, Conditioning, TextStack, tokenizer
from .prompts.clip import CONTEXT_LENGTH
from .prompts.conditioning import NOBODYS, UNKNOWN
from .state import LifelongState


@dataclass(frozen=True)
class OwnWords:
    """Where a concept's words begin and how many rows they are: in the prompt that names it, and
    in the one with the plain noun."""

    start: tuple[int, int]
    length: tuple[int, int]

    def put(self, named: Tensor, plain: Tensor) -> Tensor:
        """The rows of `plain` [..., T, W], the concept's words from `named` in the noun's place."""
        (own, at), (count, replaced) = self.start, self.length
        words = named[..., own : own + count, :]
        rows = torch.cat([plain[..., :at, :], words, plain[..., at + replaced :, :]], dim=-2)
        return rows[..., : plain.shape[-2], :]

    def own(self, owners: Tensor, number: int) -> Tensor:
        """The owners [T] of a plain prompt's rows, of which these belong to a concept."""
        at, (count, replaced) = self.start[1], self.length
        words = owners.new_full((count,), number)
        return torch.cat([owners[:at], words, owners[at + replaced :]])[: len(owners)]


@dataclass(frozen=True)
class Reading:
    """How a prompt is read: with the plain nouns, and for each concept with it alone.

    places: of the concepts' words in `plain`, the last ones first, so that putting words there
    moves none that are still to come. numbers: of the concepts, in the same order.
    """

    plain: str
    named: tuple[str, ...]
    places: tuple[OwnWords, ...]
    numbers: tuple[int, ...]

    def owners(self, length: int) -> Tensor:
        """Of the rows [length] as they are read."""
        return row_owners(zip(self.numbers, self.places, strict=True), length)


def row_owners(places: Iterable[tuple[int, OwnWords]], length: int) -> Tensor:
    """Of a prompt's rows [length], from the concepts' numbers and places, the last ones first."""
    owners = torch.full((length,), NOBODYS)
    for number, place in places:
        owners = place.own(owners, number)
    return owners


def put_together(
    places: Sequence[tuple[int, OwnWords]], named: Conditioning, plain: Conditioning
) -> Conditioning:
    """`plain`, in whose rows of these numbers the words are those of `named`, which has one prompt
    for each of `places`; those of one row come in the order of `Reading`. The pooled output is
    the plain one."""

    def joined(own: Tensor, others: Tensor) -> Tensor:
        rows = list(others.unbind(0))
        for words, (row, one) in zip(own, places, strict=True):
            rows[row] = one.put(words, rows[row])
        return torch.stack(rows)

    layers = named.layers
    if layers is not None:
        layers = joined(layers, plain.context[:, None].expand(-1, layers.shape[1], -1, -1))
    return Conditioning(joined(named.context, plain.context), plain.pooled, layers)


def localized_concepts(state: LifelongState | None) -> tuple[Concept, ...]:
    """The concepts that were learned with localized words."""
    records = state.records if state is not None else ()
    return tuple(one.concept for one in records if one.settings.get("localized_words"))


def own_words(named: Sequence[PromptToken], concept: Concept) -> OwnWords | None:
    """The concept's place in a prompt that names no other, and in the same one without its vectors.

    None where it is there twice or without its noun behind it, or the prompt has several chunks.
    """
    noun = tokenizer().encode(concept.noun)
    vectors = [at for at, item in enumerate(named) if item == concept.token]
    if not vectors or len(named) > CONTEXT_LENGTH:
        return None
    begin, end = vectors[0], vectors[0] + len(vectors)
    behind = list(named[end : end + len(noun)])
    if vectors != list(range(begin, end)) or behind != noun:
        return None
    return OwnWords((begin, begin), (len(vectors) + len(noun), len(noun)))


def reading_of(
    text: TextStack,
    prompt: str,
    vectors: Mapping[str, ConceptVectors],
    concepts: Sequence[Concept],
) -> Reading | None:
    """How to read a prompt with those of `concepts` that it names in their own words alone.

    None where it names none, or `own_words` knows no place. Raises InputError for an unknown
    concept token.
    """
    found = [(n, one) for n, one in enumerate(concepts) if mentions(prompt, one.token)]
    if not found:
        return None
    tokens = [concept.token for _, concept in found]
    plain = without_mentions(prompt, tokens)
    read = []
    for number, concept in found:
        named = without_mentions(prompt, [token for token in tokens if token != concept.token])
        places = own_words(prompt_tokens(text.tokenize(named, vectors)), concept)
        if places is None:
            return None
        read.append((named, places, number))
    read.sort(key=lambda one: one[1].start[1], reverse=True)
    texts, places_of, numbers = zip(*read, strict=True)
    return Reading(plain, texts, places_of, numbers)


def encode_localized(
    text: TextStack,
    prompts: Sequence[str],
    vectors: Mapping[str, ConceptVectors],
    concepts: Sequence[Concept],
) -> Conditioning:
    """As `TextStack.encode`, each prompt with those of `concepts` that it names in their own words
    alone; as it is where `reading_of` knows no way. Rows are owned by the concepts' numbers.
    """
    readings = [reading_of(text, prompt, vectors, concepts) for prompt in prompts]
    found = [(number, one) for number, one in enumerate(readings) if one is not None]
    if not found:
        encoded = text.encode(prompts, vectors)
        return _with_owners(encoded, prompts, concepts) if concepts else encoded
    named = [prompt for _, one in found for prompt in one.named]
    places = [(row, place) for row, (_, one) in enumerate(found) for place in one.places]
    plain = text.encode([one.plain for _, one in found], vectors)
    owners = torch.stack([one.owners(CONTEXT_LENGTH) for _, one in found])
    together = put_together(places, text.encode(named, vectors), plain)
    parts = [replace(together, owners=owners.to(together.context.device))]
    others = [number for number, one in enumerate(readings) if one is None]
    if others:
        left = [prompts[number] for number in others]
        parts.append(_with_owners(text.encode(left, vectors), left, concepts))
    order = torch.tensor([number for number, _ in found] + others)
    return Conditioning.cat(parts)[torch.argsort(order)]


def _with_owners(
    encoded: Conditioning, prompts: Sequence[str], concepts: Sequence[Concept]
) -> Conditioning:
    """Prompts that were encoded as they are: rows of one that names a concept may tell of it."""
    named = [any(mentions(prompt, one.token) for one in concepts) for prompt in prompts]
    each = torch.tensor([UNKNOWN if one else NOBODYS for one in named])
    rows = each[:, None].expand(-1, encoded.context.shape[1])
    return replace(encoded, owners=rows.to(encoded.context.device))
