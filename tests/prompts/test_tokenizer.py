"""CLIP's tokenizer: the ids that CLIPTokenizer gives."""

from __future__ import annotations

import pytest

from lifelong_core.prompts.tokenizer import tokenizer


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("A  PHOTO\tof\n a Cat", [320, 1125, 539, 320, 2368]),
        (
            "don't, we'll: 'quoted' cat's",
            [847, 713, 267, 649, 1342, 281, 262, 27706, 262, 2368, 568],
        ),
        ("3.14 and 2026", [274, 269, 272, 275, 537, 273, 271, 273, 277]),
        ("supercalifragilistic", [1642, 2857, 13093, 2076, 1561]),
        (
            "na\xefve \xc5ngstr\xf6m e\u0301t\xe9",
            [1097, 35689, 563, 23176, 10352, 807, 7255, 332, 3459, 39694],
        ),
        ("\u65e5\u672c\u8a9e", [39121, 44353, 34002, 508]),
        ("a \U0001f408 and \U0001f469\u200d\U0001f467", [320, 2074, 486, 537, 26304, 964, 356]),
        (
            "(red:1.2) [x] <y> a_b #tag -- ...",
            [
                263,
                736,
                281,
                272,
                269,
                273,
                264,
                314,
                343,
                316,
                283,
                344,
                285,
                320,
                318,
                321,
                258,
                3640,
                2432,
                678,
            ],
        ),
        ("<|endoftext|> x", [49407, 343]),
        ("\xa0x\xbd\u2167", [343, 33613, 158, 227, 371]),
    ],
)
def test_ids(text: str, ids: list[int]) -> None:
    assert tokenizer().encode(text) == ids


def test_vocabulary_is_clips() -> None:
    vocabulary = tokenizer().vocabulary
    assert len(vocabulary) == 49408
    assert sorted(vocabulary.values()) == list(range(49408))
    assert vocabulary["!"] == 0
    assert vocabulary["!</w>"] == 256
    assert vocabulary["<|startoftext|>"] == 49406
    assert vocabulary["<|endoftext|>"] == 49407


def test_words_of_the_vocabulary() -> None:
    assert tokenizer().has_word("dog")
    assert tokenizer().has_word("Dog")
    assert not tokenizer().has_word("rexified")
    assert not tokenizer().has_word("my_dog")
