"""The benchmark of localized words: what it compares, and with which sign."""

from __future__ import annotations

import torch

from benchmarks.localized_words import LESSONS, SENTENCES, Drawn, other_of, rows, sheet, summarised
from lifelong_core.training.localized import FILLERS
from lifelong_core.world.streams import toys5

TOYS = toys5(2)[:2]


def _cells(shares: dict[str, int]) -> dict[tuple[str, str, str], Drawn]:
    """So many of four pictures in their look, by lesson; every second thing is there twice."""
    return {
        (toy.token, lesson, sentence): Drawn(
            torch.rand(4, 3, 8, 8),
            [True] * shares[lesson] + [False] * (4 - shares[lesson]),
            [True, True, False, False] if "{other}" in text else [],
        )
        for toy in TOYS
        for lesson in LESSONS
        for sentence, text in SENTENCES.items()
    }


def test_no_sentence_uses_words_of_the_lesson() -> None:
    """But those that every caption has."""
    for toy in toys5(2):
        assert other_of(toy) not in (toy.noun, *FILLERS)
    words = set(SENTENCES["later"].replace("{toy}", "").replace("{place}", "").split())
    assert words - {"a", "of"} and not (words - {"a", "of"}) & set(FILLERS)


def test_differences_have_the_sign_of_their_name() -> None:
    cells = _cells({"usual": 1, "localized": 3})
    summary = summarised(cells)
    assert summary["usual"]["later"] == {"look": [0.25, 0.25, 0.25]}
    assert summary["localized"]["second"] == {"look": [0.75] * 3, "other": [0.5] * 3}
    assert summary["localized_minus_usual"] == {name: [0.5] * 3 for name in SENTENCES}
    assert len(rows(cells)) == len(cells)
    assert sheet(cells).size == (8 * 2 * len(SENTENCES), 8 * len(TOYS) * len(LESSONS))
