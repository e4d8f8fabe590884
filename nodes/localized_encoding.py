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
from ..lifelong_core.localized_words import OwnWords, localized_concepts, row_owners
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

    Prompts are encoded as they are where they name none, name one twice or without its noun
    behind it, or have several chunks. padding: each encoder's, of its `tokens`.
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
        places = self._places(tokens)
        if not places:
            return tuple(self.encode(tokens))
        read = {
            encoder: self._readings(chunks[0], (None, *places), self.padding[encoder])
            for encoder, chunks in tokens.items()
        }
        encoded, pooled, *extra = self.encode(read)
        found = dict(extra[0]) if extra else {}
        context = _put_together(encoded, list(places.values()))
        if KEY in found:
            layers = _put_together(found[KEY].layers, list(places.values()))
            found[KEY] = LayerContexts(context, layers)
        owners = row_owners(places.items(), context.shape[1])
        return context, pooled, {**found, WORDS: LocalizedRows(context, owners, self.tokens)}

    def _places(self, tokens: Mapping[str, Sequence[Chunk]]) -> dict[int, OwnWords]:
        """The concepts of a prompt and where their words are; the last ones first."""
        if any(len(chunks) != 1 for chunks in tokens.values()):
            return {}
        ((chunk,), *_) = tokens.values()
        owners = self._owners(chunk)
        places = {}
        for number in dict.fromkeys(owner for owner in owners if owner is not None):
            at = [place for place, owner in enumerate(owners) if owner == number]
            begin, end, noun = at[0], at[-1] + 1, self._nouns[number]
            behind = [entry[0] for entry in chunk[end : end + len(noun)]]
            if end - begin != len(at) or any(map(_is_vector, behind)) or behind != noun:
                return {}
            others = sum(owner is not None for owner in owners[:begin])
            places[number] = OwnWords((begin - others,) * 2, (len(at) + len(noun), len(noun)))
        return dict(reversed(places.items()))

    def _readings(self, chunk: Chunk, kept: Sequence[int | None], padding: int) -> list[list[Any]]:
        """A chunk without the vectors of all concepts but one, for each of `kept`."""
        owned = list(zip(chunk, self._owners(chunk), strict=True))
        pad = (padding, 1.0, *chunk[-1][2:])
        each = [[entry for entry, owner in owned if owner in (None, one)] for one in kept]
        return [read + [pad] * (len(chunk) - len(read)) for read in each]

    def _owners(self, chunk: Chunk) -> list[int | None]:
        """For each position the concept whose vector stands there."""
        return [
            self._numbers.get(mark(entry[0])) if _is_vector(entry[0]) else None for entry in chunk
        ]


def _is_vector(token: Any) -> bool:
    return isinstance(token, Tensor)


def _put_together(encoded: Tensor, places: Sequence[OwnWords]) -> Tensor:
    """[…, (1 + n) T, W], a prompt with plain nouns and n with a concept, -> […, T, W]."""
    plain, *named = encoded.unflatten(-2, (1 + len(places), -1)).unbind(-3)
    for place, own in zip(places, named, strict=True):
        plain = place.put(own, plain)
    return plain
