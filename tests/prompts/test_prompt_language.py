"""ComfyUI's prompt language: weights, escapes, embeddings and their traps, chunks of 77."""

from __future__ import annotations

import pytest

from lifelong_core.errors import InputError
from lifelong_core.prompts.clip import BOS, EOS
from lifelong_core.prompts.syntax import weighted_pieces, words_and_tokens
from lifelong_core.prompts.tokenizer import tokenizer
from lifelong_core.prompts.tokens import (
    EMPTY_CHUNK,
    Position,
    TokenizedPrompt,
    TokenVector,
    end_position,
    tokenize,
)


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("", []),
        ("plain", [("plain", 1.0)]),
        ("a (b) c", [("a ", 1.0), ("b", 1.1), (" c", 1.0)]),
        ("(b:1.3)", [("b", 1.3)]),
        ("((b))", [("b", 1.1 * 1.1)]),
        ("(a (b:0.5) c:1.2)", [("a ", 1.2), ("b", 0.5), (" c", 1.2)]),
        ("(a (b))", [("a ", 1.1), ("b", 1.1 * 1.1)]),
        ("(b:x)", [("b:x", 1.1)]),
        ("(:1.3)", [(":1.3", 1.1)]),
        ("[b] \\(c\\)", [("[b] (c)", 1.0)]),
        ("(\\(c\\):1.5)", [("(c)", 1.5)]),
        ("(open", [("(open", 1.0)]),
        ("close)", [("close)", 1.0)]),
        ("()", [("", 1.1)]),
    ],
)
def test_weights(prompt: str, pieces: list[tuple[str, float]]) -> None:
    found = weighted_pieces(prompt)
    assert [text for text, _ in found if text] == [text for text, _ in pieces if text]
    assert [w for text, w in found if text] == pytest.approx([w for text, w in pieces if text])


@pytest.mark.parametrize(
    ("piece", "parts"),
    [
        ("embedding:rex dog", [("rex", True), ("dog", False)]),
        ("a embedding:rex dog", [("a ", False), ("rex", True), ("dog", False)]),
        ("embedding:rex", [("rex", True)]),
        ("embedding:rex, dog", [("rex", True), (", dog", False)]),
        ("embedding:rex<x> y", [("rex", True), ("<x> y", False)]),
        ("embedding:rex[x", [("rex", True), ("[x", False)]),
        ("embedding: rex dog", [("rex", True), ("dog", False)]),
        ("embedding:rex embedding:tom", [("rex", True), ("tom", True)]),
        ("a,embedding:rex", [("a,embedding:rex", False)]),
        ("no token", [("no token", False)]),
    ],
)
def test_embeddings_are_cut_out(piece: str, parts: list[tuple[str, bool]]) -> None:
    assert list(words_and_tokens(piece, {"rex", "tom"})) == parts


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("embedding:ghost dog", "embedding:ghost, which is not a known concept token"),
        ("embedding:rex. A dog", r"embedding:rex\., .*Put a space behind the token 'rex'"),
        ("embedding:Rex dog", "embedding:Rex"),
        ("embedding:", "embedding:,"),
    ],
)
def test_a_concept_never_vanishes_silently(prompt: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tokenize(prompt, {"rex": 1}, tokenizer())


def ids(prompt: TokenizedPrompt, chunk: int = 0) -> list[object]:
    """Items of a chunk without padding."""
    return [p.item for p in prompt.chunks[chunk] if p.item is not None]


def test_a_prompt_begins_ends_and_is_padded() -> None:
    prompt = tokenize("a dog", {}, tokenizer())
    assert ids(prompt) == [BOS, 320, 1929, EOS]
    assert [len(chunk) for chunk in prompt.chunks] == [77]
    assert prompt.chunks[0][4:] == (Position(None),) * 73
    assert end_position(prompt.chunks[0]) == 3
    assert not prompt.weighted
    assert tokenize("", {}, tokenizer()).chunks == (EMPTY_CHUNK,)


def test_vectors_stand_in_a_row_with_the_weight_of_their_piece() -> None:
    prompt = tokenize("a (embedding:rex dog:1.5)", {"rex": 2}, tokenizer())
    rex = [Position(TokenVector("rex", row), 1.5) for row in (0, 1)]
    assert list(prompt.chunks[0][1:5]) == [Position(320), *rex, Position(1929, 1.5)]
    assert prompt.tokens == {"rex"}
    assert prompt.weighted


@pytest.mark.parametrize(("words", "chunks"), [(75, 1), (76, 2), (150, 2), (151, 3)])
def test_long_prompts_make_more_chunks(words: int, chunks: int) -> None:
    prompt = tokenize("dog " * words, {}, tokenizer())
    assert len(prompt.chunks) == chunks
    assert all(len(chunk) == 77 and chunk[0].item == BOS for chunk in prompt.chunks)
    assert sum(item == 1929 for n in range(chunks) for item in ids(prompt, n)) == words


def test_a_short_piece_is_not_cut_at_the_end_of_a_chunk() -> None:
    prompt = tokenize("dog " * 73 + "(red blue green:1.2)", {}, tokenizer())
    assert end_position(prompt.chunks[0]) == 74
    assert [p.weight for p in prompt.chunks[1][1:4]] == [1.2] * 3


def test_a_long_piece_is_cut() -> None:
    prompt = tokenize("dog " * 73 + "(" + "red " * 8 + ":1.2)", {}, tokenizer())
    assert end_position(prompt.chunks[0]) == 76
    assert [p.weight for p in prompt.chunks[0][73:76]] == [1.0, 1.2, 1.2]
    assert [p.weight for p in prompt.chunks[1][1:7]] == [1.2] * 6
