"""Which positions of a tokenised prompt hold a concept's vectors and which hold its noun."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from ..errors import InputError
from ..prompts import TokenizedPrompt, TokenVector, tokenizer
from ..prompts.clip import BOS, EOS
from ..prompts.syntax import IDENTIFIER

PromptToken = int | str | None
"""What stands at one position: a vocabulary id, the concept token whose vector it is, or padding.
"""
Pair = tuple[str | None, str]
"""What tells one thing of a picture: its concept token (or a plain word, such as its colour; None
when there is nothing but the noun) and its noun."""

END_OF_WORD = "</w>"


@dataclass(frozen=True)
class WordPlaces:
    """Positions of one pair's words in a prompt: of the concept (none: empty) and of the noun."""

    concept: tuple[int, ...]
    noun: tuple[int, ...]


@dataclass(frozen=True)
class PromptPlaces:
    """The pairs of one prompt, in the order asked for, and the prompt's length in positions.

    `length` is 77 times its chunks: where prompts of different lengths share a batch, the columns
    of the shorter one repeat after so many.
    """

    pairs: tuple[WordPlaces, ...]
    length: int

    @property
    def mentions(self) -> tuple[int, ...]:
        """Place of every pair in the order of mention, 0 for the noun that comes first."""
        nouns = [min(pair.noun) for pair in self.pairs]
        return tuple(sorted(nouns).index(noun) for noun in nouns)


def prompt_tokens(prompt: TokenizedPrompt) -> list[PromptToken]:
    """The prompt's positions in order, chunk after chunk of 77."""
    items = (position.item for chunk in prompt.chunks for position in chunk)
    return [item.token if isinstance(item, TokenVector) else item for item in items]


def find_pairs(tokens: Sequence[PromptToken], pairs: Sequence[Pair]) -> PromptPlaces:
    """Find every pair in a prompt.

    A concept's places are all of its vectors, in every mention, with or without "embedding:"
    before its name; a word that no vector is called by is looked for as plain text. Concept and
    noun are those that no other pair has and that stand closest, the noun behind the concept, or
    else the first free ones: two dogs with a concept each have a noun each, and a dog without
    concept has what is left. Nouns may have several words and any case.

    Raises InputError, listing what the prompt holds, when a concept or a noun is not in it, when
    fewer nouns are there than pairs ask for, or when `pairs` is empty.
    """
    if not pairs:
        raise InputError("There is nothing to guide: give at least one pair of concept and noun.")
    plain = _content(tokens)
    taken: set[int] = set()
    found: dict[int, WordPlaces] = {}
    for number in sorted(range(len(pairs)), key=lambda one: pairs[one][0] is None):
        concept, noun = pairs[number]
        concepts = _concept_places(plain, concept, taken) if concept else [()]
        nouns = [place for place in _text_places(plain, noun) if taken.isdisjoint(place)]
        if not nouns:
            raise InputError(_missing("noun", noun, plain, bool(_text_places(plain, noun))))
        at, place = min(product(concepts, nouns), key=lambda both: _distance(*both))
        taken.update(at, place)
        found[number] = WordPlaces(at, place)
    return PromptPlaces(tuple(found[number] for number in range(len(pairs))), len(tokens))


def noun_places(
    tokens: Sequence[PromptToken], pairs: Sequence[Pair], plain: Sequence[PromptToken]
) -> PromptPlaces:
    """Where the pairs' nouns are in `plain`: the same prompt without the concepts' vectors.

    Raises InputError as `find_pairs` does.
    """
    found = find_pairs(tokens, pairs)
    before, after = _content(tokens), _content(plain)
    nouns = [
        _text_places(after, noun)[_text_places(before, noun).index(places.noun)]
        for (_, noun), places in zip(pairs, found.pairs, strict=True)
    ]
    return PromptPlaces(tuple(WordPlaces((), noun) for noun in nouns), len(plain))


Content = Sequence[tuple[int, PromptToken]]
"""Positions that hold words or vectors, without begin, end and padding."""


def _content(tokens: Sequence[PromptToken]) -> Content:
    """The positions of a prompt that hold words or vectors, with what stands there."""
    return [(at, item) for at, item in enumerate(tokens) if item not in (None, BOS, EOS)]


def _distance(concept: tuple[int, ...], noun: tuple[int, ...]) -> float:
    """How far the noun stands behind the concept; infinite where it does not."""
    return min((noun[0] - at for at in concept if at < noun[0]), default=math.inf)


def _concept_places(content: Content, concept: str, taken: set[int]) -> list[tuple[int, ...]]:
    """The free places of a concept: one with all of its vectors, or each of its word."""
    name = concept.removeprefix(IDENTIFIER)
    vectors = tuple(at for at, item in content if item == name)
    words = [] if concept.startswith(IDENTIFIER) else _text_places(content, concept)
    places = [place for place in ([vectors] if vectors else words) if taken.isdisjoint(place)]
    if not places:
        raise InputError(_missing("concept", name, content, bool(vectors or words)))
    return places


def _text_places(content: Content, text: str) -> list[tuple[int, ...]]:
    """Every place where the tokens of `text` follow one another, also over a chunk's end."""
    wanted = tokenizer().encode(text)
    if not wanted:
        raise InputError(f"{text!r} holds no word; give a noun such as 'dog'.")
    last = len(content) - len(wanted)
    windows = (content[start : start + len(wanted)] for start in range(last + 1))
    return [tuple(at for at, _ in part) for part in windows if [item for _, item in part] == wanted]


def _missing(kind: str, name: str, content: Content, taken: bool) -> str:
    vectors = ", ".join(dict.fromkeys(item for _, item in content if isinstance(item, str)))
    words = " ".join(_words(item for _, item in content))
    what = f"The prompt does not hold the {kind} {name!r}"
    if taken:
        what = f"More pairs ask for the {kind} {name!r} than the prompt has of it"
    return (
        f"{what}. Found were the concept tokens: {vectors or 'none'}; and the words: "
        f"{words or 'none'}. Name what the prompt names, or change the prompt."
    )


def _words(items: Iterable[PromptToken]) -> list[str]:
    """The plain words of a prompt, put together from their pieces."""
    pieces = tokenizer().pieces
    text = "".join(pieces[item] for item in items if isinstance(item, int))
    return [word for word in text.split(END_OF_WORD) if word]
