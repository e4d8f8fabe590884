"""Encoding a lesson's prompts step after step, each only as often as it must be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from .clip import CONTEXT_LENGTH
from .conditioning import Conditioning
from .stack import TextStack
from .tokens import TokenizedPrompt
from .vectors import ConceptVectors, is_layerwise


class PromptEncoder(Protocol):
    """What a lesson's or a consolidation's terms get their prompts' conditioning from."""

    def encode(
        self, prompts: Sequence[str], vectors: Mapping[str, ConceptVectors] | None = None
    ) -> Conditioning:
        """One row per prompt, as `TextStack.encode` has them."""


class PromptCache:
    """Encodes prompts for training; those that no trainable vector touches are encoded once.

    Vectors that require a gradient are trainable; the others must not change during the life of
    the cache. With `trains_encoder` (adapters inside the text encoders) nothing is kept but the
    tokenised prompts.
    """

    def __init__(self, text: TextStack, *, trains_encoder: bool = False) -> None:
        self.text = text
        self.trains_encoder = trains_encoder
        self._tokenized: dict[str, TokenizedPrompt] = {}
        self._constant: dict[str, Conditioning] = {}

    def encode(
        self, prompts: Sequence[str], vectors: Mapping[str, ConceptVectors] | None = None
    ) -> Conditioning:
        """As `TextStack.encode`: one row per prompt, differentiable in the trainable vectors."""
        vectors = vectors or {}
        trained = {
            token
            for token, concept in vectors.items()
            if any(value.requires_grad for value in concept.values())
        }
        unique = list(dict.fromkeys(prompts))
        for prompt in unique:
            if prompt not in self._tokenized:
                self._tokenized[prompt] = self.text.tokenize(prompt, vectors)
        changing = [p for p in unique if self.trains_encoder or self._tokenized[p].tokens & trained]
        constant = [p for p in unique if p not in changing]
        self._encode_constant([p for p in constant if p not in self._constant], vectors)
        parts = [self._constant[prompt] for prompt in constant]
        if changing:
            tokenized = [self._tokenized[prompt] for prompt in changing]
            parts.append(self.text.encode_tokenized(tokenized, vectors))
        encoded = Conditioning.cat(parts)
        place = {prompt: row for row, prompt in enumerate([*constant, *changing])}
        return encoded[torch.tensor([place[prompt] for prompt in prompts])]

    def _encode_constant(
        self, prompts: Sequence[str], vectors: Mapping[str, ConceptVectors]
    ) -> None:
        if not prompts:
            return
        tokenized = [self._tokenized[prompt] for prompt in prompts]
        with torch.no_grad():
            encoded = self.text.encode_tokenized(tokenized, vectors)
        for row, prompt in enumerate(prompts):
            length = CONTEXT_LENGTH * len(tokenized[row].chunks)
            one = encoded[slice(row, row + 1)].first_rows(length)
            if not is_layerwise(tokenized[row], vectors):
                one = replace(one, layers=None)
            self._constant[prompt] = one
