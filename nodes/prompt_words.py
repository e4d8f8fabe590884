"""From a prompt and ComfyUI's CLIP to the positions of the words that guidance is about."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..lifelong_core.attention import Pair, PromptPlaces, PromptToken, find_pairs
from ..lifelong_core.attention.words import noun_places
from ..lifelong_core.errors import InputError, ModelError
from ..lifelong_core.prompts.clip import EOS
from ..lifelong_core.prompts.syntax import IDENTIFIER
from ..lifelong_core.state import LifelongState

ENCODERS = ("l", "h")
"""ComfyUI's names of the text encoders whose positions are those of the attention maps. SDXL's
other one, g, has the same positions."""
SAME = 5e-3
"""Relative difference of two encodings of one prompt, at most."""


@dataclass(frozen=True, eq=False)
class PromptWords:
    """A prompt's words and how its CLIP encodes it, to know it again.

    encodings: what CLIP Text Encode gives, [1, T, width] each (several with a schedule).
    """

    text: str
    pairs: tuple[Pair, ...]
    places: PromptPlaces
    encodings: tuple[Tensor, ...]

    def same(self, other: PromptWords) -> bool:
        """Whether both are the same words of the same prompt by the same CLIP."""
        return (
            self.places == other.places
            and len(self.encodings) == len(other.encodings)
            and all(map(torch.equal, self.encodings, other.encodings))
        )

    def are_in(self, context: Tensor | None) -> bool:
        """Whether a conditioning [B, T', width] is this prompt, or begins with it."""
        return context is not None and any(_begins(context, known) for known in self.encodings)


def _begins(context: Tensor, known: Tensor) -> bool:
    length = known.shape[1]
    if context.shape[-1] != known.shape[-1] or context.shape[1] < length:
        return False
    difference = context[:, :length].to(known) - known
    return bool((difference.flatten(1).norm(dim=1) <= SAME * known.norm()).all())


def read_prompt(
    clip: Any, text: str, pairs: str, state: LifelongState | None = None
) -> PromptWords:
    """The words of `pairs` in a prompt, as CLIP Text Encode with this CLIP would read it.

    pairs: see `parse_pairs`; empty: the concepts of `state` that the prompt names. Raises
    InputError when a word is not in the prompt, listing what is, and when there is no pair.
    """
    chunks, named = _tokenized(clip, text)
    chosen = parse_pairs(pairs) or _state_pairs(state, named)
    places = find_pairs(_positions(chunks, named), chosen)
    encoded = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    return PromptWords(
        text, tuple(chosen), places, tuple(cond.float().cpu() for cond, _ in encoded)
    )


def noun_positions(clip: Any, text: str, pairs: Sequence[Pair], plain: str) -> PromptPlaces:
    """Where `plain`, a prompt with plain nouns, has those nouns that are the pairs' in `text`.

    Raises InputError as `read_prompt` does.
    """
    tokens, others = (_positions(*_tokenized(clip, prompt)) for prompt in (text, plain))
    return noun_places(tokens, pairs, others)


def parse_pairs(lines: str) -> list[Pair]:
    """One pair per line: `embedding:my_dog dog`, `red dog`, or a noun alone, such as `dog`.

    The first word of several is the concept, or another word that tells this thing from others.
    """
    words = (line.split() for line in lines.splitlines())
    return [
        (line[0], " ".join(line[1:])) if len(line) > 1 else (None, line[0])
        for line in words
        if line
    ]


def _state_pairs(state: LifelongState | None, named: Sequence[str]) -> list[Pair]:
    if state is None:
        raise InputError(
            "There is no concept to guide: write one pair per line, such as "
            f"'{IDENTIFIER}my_dog dog' or 'red dog', or link a LIFELONG_STATE."
        )
    pairs: list[Pair] = [(c.token, c.noun) for c in state.concepts if c.token in named]
    if not pairs:
        known = ", ".join(IDENTIFIER + concept.token for concept in state.concepts)
        raise InputError(
            f"The prompt names none of the state's concepts ({known}). Write them into the "
            "prompt, each followed by its noun, and link the state's CLIP."
        )
    return pairs


def _tokenized(clip: Any, text: str) -> tuple[Any, list[str]]:
    """ComfyUI's chunks of (token, weight), and the embedding's name of every vector in them."""
    encoder = next((e for e in ENCODERS if hasattr(clip.tokenizer, f"clip_{e}")), None)
    if encoder is None:
        kind = type(clip.cond_stage_model).__name__
        raise ModelError(
            f"This CLIP is {kind}; attention guidance needs that of Stable Diffusion 1, 2 or XL, "
            "or of the pack's demo model."
        )
    chunks, found = looked_up(getattr(clip.tokenizer, f"clip_{encoder}"), text)
    names: list[str] = []
    for name, vectors in found:
        if vectors is not None:
            names.extend([name.strip(",")] * (1 if vectors.ndim == 1 else len(vectors)))
    return chunks, names


def looked_up(words: Any, text: str) -> tuple[Any, list[tuple[str, Tensor | None]]]:
    """The chunks that an encoder's tokenizer makes of a prompt, and every name that it looked up
    behind `embedding:`, as ComfyUI reads names, with the vectors that it found."""
    listening = copy.copy(words)
    found: list[tuple[str, Tensor | None]] = []
    look_up = listening._try_get_embedding

    def noting(name: str) -> Any:
        answer = look_up(name)
        found.append((answer[1], answer[0]))
        return answer

    listening._try_get_embedding = noting
    return listening.tokenize_with_weights(text), found


def _positions(chunks: Sequence[Any], names: Sequence[str]) -> list[PromptToken]:
    """What stands at every position; padding, whatever its id, is None."""
    vectors = iter(names)
    positions: list[PromptToken] = []
    for chunk in chunks:
        ended = False
        for token, *_ in chunk:
            positions.append(
                None if ended else next(vectors) if torch.is_tensor(token) else int(token)
            )
            ended = ended or positions[-1] == EOS
    return positions
