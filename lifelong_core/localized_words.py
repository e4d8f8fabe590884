"""Prompts that know a concept in its own words alone, as lessons with `localized_words` teach it.

The rows of the concept's words come from a prompt that names it, all others from the one with its
plain noun. In "a photo of a <dog> dog and a cat" as it is, every row behind the dog's words tells
of the dog: the cat takes on its look, or is not drawn at all. (Feng et al. 2023, Structured
Diffusion Guidance, also put words that were encoded apart into a prompt.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention.words import PromptToken, content_of, prompt_tokens
from .concepts import Concept, mentions, with_plain_nouns
from .prompts import ConceptVectors, Conditioning, TextStack, tokenizer
from .prompts.clip import CONTEXT_LENGTH
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


def put_together(
    places: Sequence[tuple[int, OwnWords]], named: Conditioning, plain: Conditioning
) -> Conditioning:
    """`plain`, in whose rows of these numbers the words are those of `named`, which has one prompt
    for each of `places`. The pooled output is the plain one."""
    at = torch.tensor([row for row, _ in places], device=plain.context.device)

    def joined(own: Tensor, others: Tensor) -> Tensor:
        rows = [one.put(words, others[row]) for words, (row, one) in zip(own, places, strict=True)]
        return others.index_copy(0, at, torch.stack(rows))

    layers = named.layers
    if layers is not None:
        layers = joined(layers, plain.context[:, None].expand(-1, layers.shape[1], -1, -1))
    return Conditioning(joined(named.context, plain.context), plain.pooled, layers)


def localized_concept(state: LifelongState, prompt: str) -> Concept | None:
    """The concept of the prompt that was learned with localized words; None where the prompt names
    another one, too."""
    named = [one for one in state.records if mentions(prompt, one.concept.token)]
    if len(named) != 1 or not named[0].settings.get("localized_words"):
        return None
    return named[0].concept


def own_words(
    named: Sequence[PromptToken], plain: Sequence[PromptToken], concept: Concept
) -> OwnWords | None:
    """The concept's place in a prompt and in the same one by `with_plain_nouns`.

    None where it is there twice or without its noun behind it, or a prompt has several chunks.
    """
    noun = tokenizer().encode(concept.noun)
    vectors = [at for at, item in enumerate(named) if item == concept.token]
    if not vectors or max(len(named), len(plain)) > CONTEXT_LENGTH:
        return None
    begin, end = vectors[0], vectors[0] + len(vectors)
    behind = list(named[end : end + len(noun)])
    if vectors != list(range(begin, end)) or behind != noun:
        return None
    # All that is new in the plain prompt is an article, right before the noun.
    at = begin + len(vectors) + len(content_of(plain)) - len(content_of(named))
    return OwnWords((begin, at), (len(vectors) + len(noun), len(noun)))


def encode_localized(
    text: TextStack,
    negative: str,
    prompt: str,
    vectors: Mapping[str, ConceptVectors],
    concept: Concept,
) -> Conditioning:
    """`negative`, and `prompt` with the concept in its own words alone; as it is where `own_words`
    knows no place. Raises InputError for a prompt with an unknown concept token."""
    plain = with_plain_nouns(prompt, [concept.token])
    named, nouns = (prompt_tokens(text.tokenize(one, vectors)) for one in (prompt, plain))
    places = own_words(named, nouns, concept)
    if places is None:
        return text.encode([negative, prompt], vectors)
    others = text.encode([negative, plain], vectors)
    if others.context.shape[1] != CONTEXT_LENGTH:
        return text.encode([negative, prompt], vectors)
    return put_together([(1, places)], text.encode([prompt], vectors), others)
