"""From a prompt to chunks of 77 positions, each a vocabulary id or a row of a concept's vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .clip import BOS, CONTEXT_LENGTH, EOS
from .syntax import weighted_pieces, words_and_tokens
from .tokenizer import Tokenizer

LONG_GROUP = 8
"""A run of text of this many ids or more may be cut in two at the end of a chunk."""


@dataclass(frozen=True)
class TokenVector:
    """Row `row` of the vectors of the concept token `token`, in place of a vocabulary id.

    layer: of layer-wise vectors, the cross-attention layer whose own is meant; None: their mean.
    """

    token: str
    row: int
    layer: int | None = None


@dataclass(frozen=True)
class Position:
    """One of the 77 positions of a chunk; `item` None is padding (its id differs per encoder)."""

    item: int | TokenVector | None
    weight: float = 1.0


Chunk = tuple[Position, ...]


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the text encoders see it: one or more chunks of 77 positions."""

    chunks: tuple[Chunk, ...]

    @property
    def tokens(self) -> frozenset[str]:
        """The concept tokens that the prompt uses."""
        items = (position.item for chunk in self.chunks for position in chunk)
        return frozenset(item.token for item in items if isinstance(item, TokenVector))

    @property
    def weighted(self) -> bool:
        """Whether any position has a weight other than 1."""
        return any(position.weight != 1.0 for chunk in self.chunks for position in chunk)

    def at_layer(self, layer: int) -> TokenizedPrompt:
        """The prompt as cross-attention layer number `layer` is told it."""
        return TokenizedPrompt(
            tuple(tuple(_at_layer(position, layer) for position in chunk) for chunk in self.chunks)
        )


def _at_layer(position: Position, layer: int) -> Position:
    if not isinstance(position.item, TokenVector):
        return position
    return replace(position, item=replace(position.item, layer=layer))


def end_position(chunk: Chunk) -> int:
    """Index of the first end token of a chunk: where the pooled output is read."""
    return next(index for index, position in enumerate(chunk) if position.item == EOS)


EMPTY_CHUNK: Chunk = (
    Position(BOS),
    Position(EOS),
    *(Position(None) for _ in range(CONTEXT_LENGTH - 2)),
)


def tokenize(prompt: str, rows: Mapping[str, int], tokenizer: Tokenizer) -> TokenizedPrompt:
    """Tokenise by ComfyUI's rules; `rows` gives the number of vectors of every known token.

    Raises InputError when the prompt names an unknown concept token.
    """
    groups: list[list[Position]] = []
    for piece, weight in weighted_pieces(prompt):
        for text, is_token in words_and_tokens(piece, rows):
            items: list[int | TokenVector]
            if is_token:
                items = [TokenVector(text, row) for row in range(rows[text])]
            else:
                items = list(tokenizer.encode(text))
            groups.append([Position(item, weight) for item in items])
    return TokenizedPrompt(_fill_chunks(groups))


def _fill_chunks(groups: list[list[Position]]) -> tuple[Chunk, ...]:
    """Lay the groups into chunks; a short group that does not fit moves to the next chunk."""
    room = CONTEXT_LENGTH - 1
    chunks = [[Position(BOS)]]
    for group in groups:
        long = len(group) >= LONG_GROUP
        while len(chunks[-1]) + len(group) > room:
            free = room - len(chunks[-1])
            if long:
                chunks[-1] += group[:free]
                group = group[free:]
            chunks.append([Position(BOS)])
        chunks[-1] += group
    return tuple(_finish(chunk) for chunk in chunks)


def _finish(chunk: list[Position]) -> Chunk:
    padding = CONTEXT_LENGTH - len(chunk) - 1
    return (*chunk, Position(EOS), *(Position(None) for _ in range(padding)))
