"""Prompts that know concepts in their own words alone, as lessons with `localized_words` teach it.

The rows of a concept's words come from a prompt that names it and no other, all rows of other words
from the one with the plain nouns. In "a photo of a <dog> dog and a cat" as it is, every row behind
the dog's words tells of the dog: the cat takes on its look, or is not drawn at all. (Feng et al.
2023, Structured Diffusion Guidance, also put words that were encoded apart into a prompt.)

Text encoders read a prompt in chunks of 77 positions, so each chunk is read by itself: with the
plain nouns, and with each of its concepts alone, as further chunks of one prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from .concepts import Concept, mentions
from .prompts import (
    ConceptVectors,
    Conditioning,
    PromptCache,
    PromptEncoder,
    TextStack,
    TokenizedPrompt,
    TokenVector,
    tokenizer,
)
from .prompts.clip import CONTEXT_LENGTH
from .prompts.conditioning import NOBODYS, UNKNOWN
from .prompts.tokens import Chunk, Position
from .state import LifelongState

Owners = Sequence[int | None]
"""For each position of a chunk the number of the concept whose vector stands there."""
T = TypeVar("T")


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


Places = Mapping[int, OwnWords]
"""The concepts of a chunk, by their numbers; the last ones first, so that putting words into the
plain chunk moves none that are still to come."""


def own_words(
    items: Sequence[object], owners: Owners, nouns: Sequence[Sequence[int]]
) -> Places | None:
    """Where the concepts' words are in a chunk.

    items: what stands at each position, a word as its vocabulary id. nouns: the ids of every
    concept's noun. None where a concept is there twice or without its noun behind it.
    """
    places = {}
    for number in dict.fromkeys(owner for owner in owners if owner is not None):
        at = [place for place, owner in enumerate(owners) if owner == number]
        begin, end, noun = at[0], at[-1] + 1, list(nouns[number])
        if end - begin != len(at) or list(items[end : end + len(noun)]) != noun:
            return None
        others = sum(owner is not None for owner in owners[:begin])
        places[number] = OwnWords((begin - others,) * 2, (len(at) + len(noun), len(noun)))
    return dict(reversed(places.items()))


def readings(chunk: Sequence[T], owners: Owners, places: Places, padding: T) -> list[list[T]]:
    """A chunk with the plain nouns, then with each concept of `places` alone; as long as it was."""
    each = [
        [item for item, owner in zip(chunk, owners, strict=True) if owner in (None, kept)]
        for kept in (None, *places)
    ]
    return [read + [padding] * (len(chunk) - len(read)) for read in each]


def put_together(encoded: Tensor, chunks: Sequence[Places]) -> Tensor:
    """The prompt [..., C T, W] from the encoded `readings` [..., R T, W] of its C chunks."""
    count = sum(1 + len(places) for places in chunks)
    rows = iter(encoded.unflatten(-2, (count, -1)).unbind(-3))
    return torch.cat([_put(next(rows), rows, places) for places in chunks], dim=-2)


def _put(plain: Tensor, named: Iterable[Tensor], places: Places) -> Tensor:
    # `places` first: the rows behind are the next chunk's.
    for place, own in zip(places.values(), named, strict=False):
        plain = place.put(own, plain)
    return plain


def row_owners(chunks: Sequence[Places]) -> Tensor:
    """Of a prompt's rows [C T] as they are put together: a concept's number, or `NOBODYS`."""
    each = []
    for places in chunks:
        owners = torch.full((CONTEXT_LENGTH,), NOBODYS)
        for number, place in places.items():
            owners = place.own(owners, number)
        each.append(owners)
    return torch.cat(each)


def localized_concepts(state: LifelongState | None) -> tuple[Concept, ...]:
    """The concepts that were learned with localized words."""
    records = state.records if state is not None else ()
    return tuple(one.concept for one in records if one.settings.get("localized_words"))


def localized_nouns(state: LifelongState | None) -> dict[str, str]:
    """Token -> noun of the concepts that were learned with localized words."""
    return {one.token: one.noun for one in localized_concepts(state)}


def places_in(prompt: TokenizedPrompt, concepts: Sequence[Concept]) -> list[Places]:
    """The places of `concepts` in each chunk of a prompt. Empty where the prompt names none, and
    where `own_words` knows no places in some chunk: it is then read as it is."""
    nouns = [tokenizer().encode(concept.noun) for concept in concepts]
    found = []
    for chunk in prompt.chunks:
        items = [position.item for position in chunk]
        places = own_words(items, _owners(chunk, concepts), nouns)
        if places is None:
            return []
        found.append(places)
    return found if any(found) else []


def _owners(chunk: Chunk, concepts: Sequence[Concept]) -> list[int | None]:
    numbers = {concept.token: number for number, concept in enumerate(concepts)}
    items = (position.item for position in chunk)
    return [numbers.get(item.token) if isinstance(item, TokenVector) else None for item in items]


def encode_localized(
    text: TextStack,
    prompts: Sequence[str],
    vectors: Mapping[str, ConceptVectors],
    concepts: Sequence[Concept],
) -> Conditioning:
    """As `TextStack.encode`, each prompt with those of `concepts` that it names in their own words
    alone; as it is where `places_in` finds none. Rows are owned by the concepts' numbers. The
    pooled output is the plain prompt's.
    """
    if not concepts:
        return text.encode(prompts, vectors)
    unique = list(dict.fromkeys(prompts))
    tokenized = [text.tokenize(prompt, vectors) for prompt in unique]
    places = [places_in(prompt, concepts) for prompt in tokenized]
    read = [_read(*both, concepts) for both in zip(tokenized, places, strict=True)]
    encoded = text.encode_tokenized(read, vectors)
    parts = []
    for row, (prompt, found) in enumerate(zip(unique, places, strict=True)):
        own = encoded[slice(row, row + 1)].first_rows(CONTEXT_LENGTH * len(read[row].chunks))
        parts.append(_put_rows(own, found) if found else _as_it_is(own, prompt, concepts))
    place = {prompt: row for row, prompt in enumerate(unique)}
    return Conditioning.cat(parts)[torch.tensor([place[prompt] for prompt in prompts])]


class LocalizedPrompts:
    """Encodes prompts as pictures are drawn from them, with `concepts` in their own words alone;
    each once, without gradient."""

    def __init__(self, text: TextStack, concepts: Sequence[Concept]) -> None:
        self.text = text
        self.concepts = tuple(concepts)
        self._known: dict[str, Conditioning] = {}

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[str], vectors: Mapping[str, ConceptVectors] | None = None
    ) -> Conditioning:
        """One row per prompt, as `encode_localized` gives it."""
        for prompt in prompts:
            if prompt not in self._known:
                found = encode_localized(self.text, [prompt], vectors or {}, self.concepts)
                self._known[prompt] = found
        return Conditioning.cat([self._known[prompt] for prompt in prompts])


def earlier_prompts(
    text: TextStack, state: LifelongState | None, *, trains_encoder: bool = False
) -> PromptEncoder:
    """What encodes prompts of a state's concepts as the state draws them.

    With `trains_encoder` they are encoded as they are, anew each time.
    """
    concepts = localized_concepts(state)
    if concepts and not trains_encoder:
        return LocalizedPrompts(text, concepts)
    return PromptCache(text, trains_encoder=trains_encoder)


def _read(
    prompt: TokenizedPrompt, found: Sequence[Places], concepts: Sequence[Concept]
) -> TokenizedPrompt:
    """The prompt whose chunks are all readings of a prompt's."""
    if not found:
        return prompt
    return TokenizedPrompt(
        tuple(
            tuple(reading)
            for chunk, places in zip(prompt.chunks, found, strict=True)
            for reading in readings(chunk, _owners(chunk, concepts), places, Position(None))
        )
    )


def _put_rows(encoded: Conditioning, found: Sequence[Places]) -> Conditioning:
    """One prompt from its readings."""
    layers = None if encoded.layers is None else put_together(encoded.layers, found)
    context = put_together(encoded.context, found)
    owners = row_owners(found)[None].to(context.device)
    return Conditioning(context, encoded.pooled, layers, owners)


def _as_it_is(encoded: Conditioning, prompt: str, concepts: Sequence[Concept]) -> Conditioning:
    """One prompt as it was encoded: where it names a concept, any row may tell of it."""
    owner = UNKNOWN if any(mentions(prompt, one.token) for one in concepts) else NOBODYS
    rows = encoded.context
    return replace(encoded, owners=torch.full(rows.shape[:2], owner, device=rows.device))
