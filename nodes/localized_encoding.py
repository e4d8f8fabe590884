"""Localized words in ComfyUI: CLIP Text Encode reads what was learned so in its own words alone.

What the library's `localized_words` does with texts is done here with ComfyUI's tokens, which keeps
weights of words: the prompt with the plain nouns and, for each concept, the one with it alone go
through the encoders in one batch, as further chunks of one prompt, and are put together again. Rows
stay where the tokens are, so that guidance finds the words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..lifelong_core.concepts import Concept
from ..lifelong_core.localized_words import (
    Places,
    localized_concepts,
    own_words,
    put_together,
    readings,
    row_owners,
)
from ..lifelong_core.prompts import tokenizer
from ..lifelong_core.sharing.naming import text_prefixes
from ..lifelong_core.state import LifelongState
from .layer_contexts import ENCODE, KEY, LayerContexts, LayerwiseEncoding, mark

WORDS = "lifelong_words"
"""In a conditioning's dictionary: `LocalizedRows`."""
Chunk = Sequence[Any]
"""ComfyUI's (token, weight, …) of 77 positions; a token is a number or an embedding's vector."""


@dataclass(frozen=True, eq=False)
class LocalizedRows:
    """Whose words stand at the rows of a prompt.

    context: [1, T, W], by which a conditioning shows that it still is this prompt. owners: [T],
    each row's number in `tokens`, or `NOBODYS`.
    """

    context: Tensor
    owners: Tensor
    tokens: tuple[str, ...]


def add_localized(clip: Any, state: LifelongState) -> None:
    """Let a clone of CLIP, changed in place, read so those of the state's concepts that were
    learned with localized words. Nothing happens where there are none.
    """
    concepts = localized_concepts(state)
    if not concepts:
        return
    padding = {
        name.removeprefix("clip_"): getattr(clip.tokenizer, name).pad_token
        for name in text_prefixes(state.family)
    }
    encode = clip.patcher.get_model_object(ENCODE)
    clip.patcher.add_object_patch(ENCODE, LocalizedEncoding(encode, concepts, padding))


def remove_encodings(patcher: Any) -> None:
    """Undo what this pack has put around the encoding of a clone of CLIP."""
    if isinstance(patcher.object_patches.get(ENCODE), (LayerwiseEncoding, LocalizedEncoding)):
        del patcher.object_patches[ENCODE]


class LocalizedEncoding:
    """`encode_token_weights` of ComfyUI's text encoders with concepts in their own words alone.

    Prompts are encoded as they are where they name none, or name one twice in a chunk or without
    its noun behind it, and where encoders get texts with the concepts at different places.
    padding: each encoder's, of its `tokens`.
    """

    def __init__(
        self,
        encode: Callable[..., Any],
        concepts: Sequence[Concept],
        padding: Mapping[str, int],
    ) -> None:
        self.encode = encode
        self.padding = padding
        self.tokens = tuple(concept.token for concept in concepts)
        self._numbers: dict[bytes, int] = {}
        for number, concept in enumerate(concepts):
            for vectors in concept.single().vectors.values():
                self._numbers |= {mark(vector): number for vector in vectors}
        self._nouns = [tokenizer().encode(concept.noun) for concept in concepts]

    def __call__(self, tokens: Mapping[str, Sequence[Chunk]]) -> tuple[Any, ...]:
        """As ComfyUI's."""
        owned = {
            encoder: [(chunk, self._owners(chunk)) for chunk in chunks]
            for encoder, chunks in tokens.items()
        }
        each = [[self._places(*both) for both in chunks] for chunks in owned.values()]
        found = [one for one in each[0] if one is not None]
        if not any(found) or any(places != found for places in each):
            return tuple(self.encode(tokens))
        read = {
            encoder: [
                reading
                for (chunk, whose), one in zip(chunks, found, strict=True)
                for reading in readings(
                    chunk, whose, one, (self.padding[encoder], 1.0, *chunk[-1][2:])
                )
            ]
            for encoder, chunks in owned.items()
        }
        encoded, pooled, *extra = self.encode(read)
        options = dict(extra[0]) if extra else {}
        context = put_together(encoded, found)
        if KEY in options:
            options[KEY] = LayerContexts(context, put_together(options[KEY].layers, found))
        words = LocalizedRows(context, row_owners(found), self.tokens)
        return context, pooled, {**options, WORDS: words}

    def _places(self, chunk: Chunk, owners: Sequence[int | None]) -> Places | None:
        words = [None if _is_vector(entry[0]) else entry[0] for entry in chunk]
        return own_words(words, owners, self._nouns)

    def _owners(self, chunk: Chunk) -> list[int | None]:
        """For each position the concept whose vector stands there."""
        return [
            self._numbers.get(mark(entry[0])) if _is_vector(entry[0]) else None for entry in chunk
        ]


def _is_vector(token: Any) -> bool:
    return isinstance(token, Tensor)
