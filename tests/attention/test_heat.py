"""Maps as pictures."""

from __future__ import annotations

import pytest
import torch

from lifelong_core.attention.heat import concept_heat, fire, mean_words, noun_heat
from lifelong_core.attention.maps import WordMaps
from lifelong_core.errors import InputError


def _words(value: float = 1.0) -> WordMaps:
    nouns, concepts = torch.zeros(2, 2, 2, 4, 4).unbind()
    nouns[0, 0, 0, 0] = value
    nouns[0, 1, 3, 3] = value / 2
    concepts[0, 0, 0, 3] = value
    paired = torch.tensor([[True, True], [True, False]])
    named = torch.tensor([[True, False], [False, False]])
    return WordMaps(nouns, concepts, paired, named, torch.zeros(2, 2))


def test_heat_is_where_the_word_looks_and_pairs_share_a_scale() -> None:
    images = torch.zeros(2, 3, 32, 32)
    nouns = noun_heat(images, _words())
    assert nouns.shape == (3, 3, 32, 32)  # two pairs of the first picture, one of the second
    assert nouns[0, :, 0, 0].tolist() == pytest.approx([0.75] * 3)
    assert nouns[1, :, 31, 31].tolist() == pytest.approx([0.75, 0.375, 0])
    assert not nouns[2].any()
    concepts = concept_heat(images, _words())
    assert concepts[0, 0, 0, 31] > 0.7 and not concepts[0, :, 0, 0].any()
    assert torch.equal(concepts[1], nouns[1])


def test_the_picture_shows_through_in_grey() -> None:
    images = torch.zeros(2, 3, 32, 32)
    images[:, 1] = 1
    cold = noun_heat(images, _words())[2]
    assert torch.allclose(cold, torch.tensor(0.25 * 0.587))


def test_colours_go_from_black_over_red_and_yellow_to_white() -> None:
    line = fire(torch.tensor([0.0, 1 / 3, 2 / 3, 1.0]).view(1, 1, 1, 4))[0, 0, :, 0]
    assert torch.allclose(
        line.T, torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1.0]]), atol=1e-6
    )


def test_the_mean_over_steps() -> None:
    mean = mean_words([_words(1.0), _words(0.5)])
    assert float(mean.nouns[0, 0, 0, 0]) == pytest.approx(0.75)
    small = WordMaps(
        *(maps[..., ::2, ::2] for maps in (_words().nouns, _words().concepts)),
        *(_words().paired, _words().named, _words().mentions),
    )
    mixed = mean_words([small, _words()])
    assert mixed.nouns.shape == _words().nouns.shape
    assert 0.5 < float(mixed.nouns[0, 0, 0, 0]) <= 1.0
    with pytest.raises(InputError, match="No step was guided"):
        mean_words([])
    with pytest.raises(InputError, match="do not fit"):
        noun_heat(torch.zeros(1, 3, 8, 8), _words())
