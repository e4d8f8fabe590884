"""Words to positions, in the tokenisation that ComfyUI and the library share."""

from __future__ import annotations

import pytest

from lifelong_core.attention import PromptPlaces, WordPlaces, find_pairs, prompt_tokens
from lifelong_core.attention.words import PromptToken, noun_places
from lifelong_core.errors import InputError
from lifelong_core.prompts import tokenizer
from lifelong_core.prompts.tokens import tokenize

ROWS = {"v-dog-1": 1, "v-cat-2": 3, "dog2": 1}


def _tokens(prompt: str) -> list[PromptToken]:
    return prompt_tokens(tokenize(prompt, ROWS, tokenizer()))


def test_vectors_and_nouns_are_found_behind_the_begin_token() -> None:
    tokens = _tokens("a photo of embedding:v-dog-1 dog and (embedding:v-cat-2 cat:1.3)")
    #        0 BOS, 1 a, 2 photo, 3 of, 4 v-dog-1, 5 dog, 6 and, 7-9 v-cat-2, 10 cat
    found = find_pairs(tokens, [("embedding:v-cat-2", "Cat"), ("v-dog-1", "dog")])
    assert found == PromptPlaces((WordPlaces((7, 8, 9), (10,)), WordPlaces((4,), (5,))), 77)
    assert found.mentions == (1, 0)


def test_a_noun_of_several_words_or_pieces() -> None:
    tokens = _tokens("a red teddy bear near a teddybear")
    pieces = len(tokenizer().encode("teddybear"))
    assert pieces > 1
    found = find_pairs(tokens, [("red", "teddy bear"), (None, "teddybear")])
    assert found.pairs[0] == WordPlaces((2,), (3, 4))
    assert found.pairs[1] == WordPlaces((), tuple(range(7, 7 + pieces)))


def test_two_concepts_of_one_noun_have_a_noun_each() -> None:
    tokens = _tokens("embedding:v-dog-1 dog and embedding:dog2 dog")
    found = find_pairs(tokens, [("dog2", "dog"), ("v-dog-1", "dog")])
    assert found.pairs == (WordPlaces((4,), (5,)), WordPlaces((1,), (2,)))


def test_nouns_are_found_again_where_their_concepts_are_left_out() -> None:
    named = _tokens(
        "a dog house, embedding:v-cat-2 cat, embedding:v-dog-1 dog and embedding:dog2 dog"
    )
    pairs = [("dog2", "dog"), ("v-cat-2", "cat"), ("v-dog-1", "dog")]
    plain = _tokens("a dog house,  cat,  dog and  dog")
    #        0 BOS, 1 a, 2 dog, 3 house, 4 ",", 5 cat, 6 ",", 7 dog, 8 and, 9 dog
    found = noun_places(named, pairs, plain)
    assert found == PromptPlaces(
        (WordPlaces((), (9,)), WordPlaces((), (5,)), WordPlaces((), (7,))), 77
    )


def test_a_repeated_colour_goes_round() -> None:
    tokens = _tokens("a red dog and a red cat")
    found = find_pairs(tokens, [("red", "dog"), ("red", "cat")])
    assert found.pairs == (WordPlaces((2,), (3,)), WordPlaces((6,), (7,)))


def test_the_order_of_the_pairs_does_not_matter() -> None:
    tokens = _tokens("a red car and a red dog")
    assert find_pairs(tokens, [("red", "dog")]).pairs == (WordPlaces((6,), (7,)),)
    both = find_pairs(tokens, [("red", "dog"), ("red", "car")])
    assert both.pairs == (WordPlaces((6,), (7,)), WordPlaces((2,), (3,)))
    tokens = _tokens("a embedding:v-dog-1 dog and a dog")
    plain = find_pairs(tokens, [(None, "dog"), ("v-dog-1", "dog")])
    assert plain.pairs == (WordPlaces((), (6,)), WordPlaces((2,), (3,)))


def test_the_second_chunk_counts_from_77() -> None:
    filler = ", ".join(["sun"] * 40)
    tokens = _tokens(f"{filler}, embedding:v-cat-2 cat")
    found = find_pairs(tokens, [("v-cat-2", "cat")])
    assert found.length == 154
    assert all(at > 77 for at in found.pairs[0].concept + found.pairs[0].noun)
    assert [tokens[at] for at in found.pairs[0].concept] == ["v-cat-2"] * 3
    assert tokens[found.pairs[0].noun[0]] == tokenizer().encode("cat")[0]


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        (("v-cat-2", "dog"), "concept 'v-cat-2'.*tokens: v-dog-1; and the words: a dog on the"),
        (("embedding:a", "dog"), "concept 'a'"),
        (("v-dog-1", "zebra"), "noun 'zebra'"),
        (("v-dog-1", "dogs"), "noun 'dogs'"),
        (("v-dog-1", "  "), "no word"),
    ],
)
def test_what_is_missing_is_told_with_what_was_found(pair: tuple[str, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        find_pairs(_tokens("a embedding:v-dog-1 dog on the beach"), [pair])


def test_a_noun_cannot_serve_two_pairs() -> None:
    with pytest.raises(InputError, match="More pairs ask for the noun 'dog'"):
        find_pairs(_tokens("a dog"), [(None, "dog"), (None, "dog")])
    with pytest.raises(InputError, match="at least one pair"):
        find_pairs(_tokens("a dog"), [])
