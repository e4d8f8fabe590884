"""The losses against slow loops written from the papers' equations."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import StableDiffusionAttendAndExcitePipeline
from torch import Tensor

from lifelong_core.attention import (
    GuidanceSettings,
    PromptPlaces,
    WordMaps,
    WordPlaces,
    guidance_loss,
    sharpen,
    word_maps,
)
from lifelong_core.attention.losses import attend_and_excite, clul, dal, oaa, smooth, strips
from lifelong_core.attention.maps import fold
from lifelong_core.errors import InputError
from lifelong_core.seeding import generator

SIZE = (6, 9)
TWO = PromptPlaces((WordPlaces((4,), (5,)), WordPlaces((7, 8), (9,))), 77)
PAIR_OF_NOUNS = PromptPlaces((WordPlaces((), (5,)), WordPlaces((), (9,))), 77)
THREE = PromptPlaces((WordPlaces((9,), (10,)), WordPlaces((), (5,)), WordPlaces((2,), (3,))), 77)


def _raw(rows: int, tokens: int = 77, seed: int = 0) -> Tensor:
    noise = torch.randn(rows, SIZE[0] * SIZE[1], tokens, generator=generator(seed, "maps"))
    return noise.mul(2).softmax(-1)


def _words(*places: PromptPlaces, seed: int = 0) -> WordMaps:
    return word_maps(sharpen(_raw(len(places), seed=seed)), SIZE, places)


def _blur(image: Tensor) -> Tensor:
    """3 x 3 Gaussian with mirrored edges, cell by cell."""
    height, width = image.shape
    total = sum(math.exp(-(a * a) - b * b) for a in (-1, 0, 1) for b in (-1, 0, 1))
    result = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            for a in (-1, 0, 1):
                for b in (-1, 0, 1):
                    r, c = abs(y + a), abs(x + b)
                    r = 2 * (height - 1) - r if r >= height else r
                    c = 2 * (width - 1) - c if c >= width else c
                    result[y, x] += math.exp(-(a * a) - b * b) / total * image[r, c]
    return result


def test_sharpening_drops_begin_and_last_and_keeps_positions() -> None:
    raw = _raw(2)
    sharp = sharpen(raw)
    assert torch.allclose(sharp[..., 1:-1], (100 * raw[..., 1:-1]).softmax(-1))
    assert not sharp[..., 0].any() and not sharp[..., -1].any()


def test_sharpening_drops_both_ends_of_every_chunk() -> None:
    raw = _raw(1, tokens=154)
    sharp = sharpen(raw)
    assert not sharp[..., [0, 76, 77, 153]].any()
    assert torch.allclose(sharp.sum(-1), torch.ones(1, SIZE[0] * SIZE[1]))


def test_half_precision_maps_are_read_in_fp32() -> None:
    certain = torch.zeros(1, 4, 77, dtype=torch.float16)
    certain[..., 5] = 1
    assert sharpen(certain).dtype == torch.float32
    assert sharpen(certain).isfinite().all()


def test_repeated_prompts_are_folded_before_anything_else() -> None:
    short, long = _raw(1), _raw(1, tokens=154, seed=1)
    repeated = torch.cat([short / 2, short / 2], dim=-1)
    both = sharpen(torch.cat([repeated, long]), [77, 154])
    assert torch.allclose(both[:1, :, :77], sharpen(short), atol=1e-6)
    assert not both[0, :, 77:].any()
    assert torch.equal(both[1:], sharpen(long))
    with pytest.raises(InputError, match="another prompt"):
        fold(_raw(1), [50])


def test_a_word_of_several_tokens_has_their_sum() -> None:
    sharp = sharpen(_raw(2))
    words = word_maps(sharp, SIZE, [TWO, THREE])
    assert torch.allclose(words.concepts[0, 1].flatten(), sharp[0, :, 7] + sharp[0, :, 8])
    assert torch.allclose(words.nouns[1, 0].flatten(), sharp[1, :, 10])
    assert words.paired.tolist() == [[True, True, False], [True] * 3]
    assert words.named.tolist() == [[True, True, False], [True, False, True]]
    assert words.mentions[1].tolist() == [2, 1, 0]


def test_smoothing_is_the_kernel_of_attend_and_excite() -> None:
    words = _words(TWO)
    assert torch.allclose(smooth(words.nouns)[0, 0], _blur(words.nouns[0, 0]), atol=1e-6)


def test_clul_is_eq_8() -> None:
    words = _words(TWO, THREE)
    expected = []
    for row, places in enumerate((TWO, THREE)):
        count, total = len(places.pairs), 0.0
        for i in range(count):
            for y in range(SIZE[0]):
                for x in range(SIZE[1]):
                    outside = x * count // SIZE[1] != places.mentions[i]
                    total += float(words.nouns[row, i, y, x]) ** 2 * outside
        expected.append(total / count * 256 / (SIZE[0] * SIZE[1]))
    assert torch.allclose(clul(words), torch.tensor(expected), rtol=1e-5)


def test_strips_of_two_are_the_halves_and_one_has_all() -> None:
    halves = strips(_words(PromptPlaces(TWO.pairs, 77)))[0]
    assert halves.sum(1).tolist() == [5, 4] and not (halves[0] & halves[1]).any()
    alone = PromptPlaces(TWO.pairs[:1], 77)
    assert float(clul(_words(alone))) == 0
    many = PromptPlaces(tuple(WordPlaces((), (at,)) for at in range(1, 12)), 77)
    assert strips(_words(many)).any(-1).all()
    assert float(clul(_words(many))) > 0


def test_dal_is_eq_9_with_the_noun_where_there_is_no_concept() -> None:
    words = _words(TWO, THREE)
    chosen = [words.concepts[1, 0], words.nouns[1, 1], words.concepts[1, 2]]
    expected = sum(1 - float(_blur(image).max()) for image in chosen)
    assert float(dal(words)[1]) == pytest.approx(expected, rel=1e-5)
    two = sum(1 - float(_blur(words.concepts[0, k]).max()) for k in range(2))
    assert float(dal(words)[0]) == pytest.approx(two, rel=1e-5)


def test_attend_and_excite_is_what_diffusers_computes() -> None:
    raw = torch.randn(1, 256, 77, generator=generator(3, "maps")).mul(2).softmax(-1)
    ours = word_maps(sharpen(raw), (16, 16), [PAIR_OF_NOUNS])
    theirs = StableDiffusionAttendAndExcitePipeline._compute_max_attention_per_index(
        raw[0].view(16, 16, 77), indices=[5, 9]
    )
    loss = StableDiffusionAttendAndExcitePipeline._compute_loss(theirs)
    assert torch.allclose(attend_and_excite(ours)[0], loss, atol=1e-6)


def test_attend_and_excite_is_the_worst_subject() -> None:
    words = _words(TWO, THREE)
    phrases = words.nouns + words.concepts
    expected = max(1 - float(_blur(phrases[0, k]).max()) for k in range(2))
    assert float(attend_and_excite(words)[0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("literal", [False, True])
def test_oaa_is_eq_11(literal: bool) -> None:
    words = _words(TWO, THREE)
    for row, places in enumerate((TWO, THREE)):
        total = 0.0
        for i in range(len(places.pairs)):
            noun = words.nouns[row, i]
            region = (noun > 0.4 * noun.max()).float()
            for j, pair in enumerate(places.pairs):
                if not pair.concept:
                    continue
                concept = words.concepts[row, j]
                if literal:
                    own = float(i == j)
                    term = (own + (-1) ** int(own) * concept * region).square().sum()
                    term = term / concept.sum()
                elif i == j:
                    term = (region * (1 - concept)).square().sum() / region.sum()
                else:
                    term = (region * concept).square().sum() / concept.sum()
                total += float(term)
        expected = total / len(places.pairs)
        assert float(oaa(words, 0.4, literal=literal)[row]) == pytest.approx(expected, rel=1e-4)


def test_oaa_does_not_move_the_regions_or_the_mass() -> None:
    sharp = sharpen(_raw(1)).requires_grad_(True)
    loss = oaa(word_maps(sharp, SIZE, [TWO]), 0.4).sum()
    (gradient,) = torch.autograd.grad(loss, sharp)
    assert not gradient[..., [5, 9]].any()
    sums = torch.tensor([float(sharp.detach()[..., 4].sum())])
    region = (sharp[0, :, 9] > 0.4 * sharp[0, :, 9].max()).detach()
    repelled = 2 * sharp.detach()[0, :, 4] / sums / 2
    own = (sharp[0, :, 5] > 0.4 * sharp[0, :, 5].max()).detach()
    only_other = region & ~own
    assert only_other.any()
    assert torch.allclose(gradient[0, only_other, 4], repelled[only_other], rtol=1e-4)


def test_an_empty_region_counts_nothing() -> None:
    words = _words(TWO)
    nothing = WordMaps(
        torch.zeros_like(words.nouns), words.concepts, words.paired, words.named, words.mentions
    )
    assert float(oaa(nothing, 0.4)) == 0
    silent = WordMaps(
        words.nouns, torch.zeros_like(words.concepts), words.paired, words.named, words.mentions
    )
    assert oaa(silent, 0.4).isfinite().all() and oaa(silent, 0.4, literal=True).isfinite().all()


def test_rows_do_not_know_of_each_other_and_weights_add_up() -> None:
    raw = _raw(2)
    settings = GuidanceSettings(caa=0.5, oaa=2.0, attend_and_excite=0.25)
    together = guidance_loss(raw, SIZE, [TWO, THREE], settings)
    alone = torch.cat(
        [
            guidance_loss(raw[k : k + 1], SIZE, [place], settings)
            for k, place in enumerate((TWO, THREE))
        ]
    )
    assert torch.allclose(together, alone, rtol=1e-5)
    words = _words(TWO, THREE)
    parts = 0.5 * (clul(words) + dal(words)) + 2 * oaa(words, 0.4) + attend_and_excite(words) / 4
    assert torch.allclose(together, parts, rtol=1e-5)


def test_places_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="do not fit 1 prompts"):
        word_maps(sharpen(_raw(2)), SIZE, [TWO])
    with pytest.raises(InputError, match="not positions"):
        word_maps(sharpen(_raw(1)), SIZE, [PromptPlaces((WordPlaces((), (90,)),), 77)])
    for make in (
        lambda: GuidanceSettings(caa=-1),
        lambda: GuidanceSettings(guided_fraction=1.5),
        lambda: GuidanceSettings(threshold=1.0),
        lambda: GuidanceSettings(oaa=math.nan),
    ):
        with pytest.raises(InputError):
            make()
