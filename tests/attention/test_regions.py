"""Masks of regions at any resolution, and mixing, each against a slow loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lifelong_core.attention.regions import (
    Region,
    aggregate_noise,
    box_mask,
    check_mixture,
    check_regions,
    cover,
    mix_attention,
)
from lifelong_core.errors import InputError
from lifelong_core.seeding import generator


def _random(*shape: int, label: str = "x") -> Tensor:
    return torch.rand(shape, generator=generator(0, label))


def test_neighbouring_boxes_part_the_picture() -> None:
    for width in (7, 8, 50):
        boxes = [box_mask(k / 3, 0, (k + 1) / 3, 1, (5, width)) for k in range(3)]
        assert torch.equal(torch.stack(boxes).sum(0), torch.ones(5, width))
    half = box_mask(0.0, 0.25, 0.5, 1.0, (8, 8))
    assert half[2:, :4].all() and half.sum() == 24


def test_a_box_smaller_than_a_pixel_has_one() -> None:
    tiny = box_mask(0.9999, 0.49, 1.0, 0.4901, (4, 4))
    assert tiny.nonzero().tolist() == [[1, 3]]


@pytest.mark.parametrize(
    "box",
    [(-0.1, 0, 1, 1), (0, 0, 1.1, 1), (0.5, 0, 0.5, 1), (0, 0.7, 1, 0.2), (0, 0, math.nan, 1)],
)
def test_boxes_outside_the_picture_or_empty_are_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="empty or not inside"):
        box_mask(*box, size=(8, 8))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.zeros(8, 8), "is empty"),
        (torch.ones(1, 8, 8), "must be \\[height, width\\]"),
        (torch.ones(0, 8), "must be"),
        (torch.full((8, 8), math.nan), "not between"),
        (torch.full((8, 8), 2.0), "not between"),
        (torch.full((8, 8), -1.0), "not between"),
    ],
)
def test_bad_masks_are_refused(mask: Tensor, words: str) -> None:
    good = Region("a dog", torch.ones(8, 8))
    with pytest.raises(InputError, match=f"region 2 \\('a cat'\\).*{words}"):
        check_regions([good, Region("a cat", mask)], (128, 128))


def test_no_region_is_refused_and_a_stretched_one_told(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match="no region"):
        check_regions([], (128, 128))
    check_regions([Region("a dog", torch.ones(31, 32))], (128, 128))
    assert not caplog.messages
    check_regions([Region("a dog", torch.ones(16, 32))], (128, 128))
    assert "stretched" in caplog.text


@pytest.mark.parametrize(
    ("alpha", "softness"), [(-0.1, 0), (1.1, 0), (math.nan, 0), (0, 0.6), (0, -1)]
)
def test_mixtures_out_of_range_are_refused(alpha: float, softness: float) -> None:
    with pytest.raises(InputError, match="share"):
        check_mixture(alpha, softness)


@pytest.mark.parametrize("shape", [(8, 8), (9, 13), (3, 5), (32, 20)])
def test_a_cell_has_the_mean_over_its_area(shape: tuple[int, int]) -> None:
    """On a grid fine enough that every pixel and every cell is made of whole points."""
    mask, (h, w) = _random(*shape), (4, 6)
    fine = mask.repeat_interleave(h, 0).repeat_interleave(w, 1)
    wanted = fine.unflatten(1, (w, -1)).unflatten(0, (h, -1)).mean((1, 3))
    (covered,) = cover([mask], (h, w))
    assert torch.allclose(covered, wanted, atol=1e-6)


def test_masks_of_other_sizes_share_one_grid() -> None:
    halves = [box_mask(0, 0, 0.5, 1, (64, 64)), box_mask(0.5, 0, 1, 1, (100, 30))]
    covered = cover(halves, (16, 16))
    assert torch.allclose(covered.sum(0), torch.ones(16, 16), atol=1e-6)
    assert cover([], (4, 4)).shape == (0, 4, 4)


@pytest.mark.parametrize("softness", [0.0, 0.1])
def test_a_region_too_small_for_the_grid_keeps_its_strongest_cell(softness: float) -> None:
    mask = torch.zeros(512, 512)
    mask[300, 40] = 0.8
    (covered,) = cover([mask], (16, 16), softness)
    assert covered[9, 1] == 0.8 and covered.argmax() == 9 * 16 + 1
    assert softness or covered.count_nonzero() == 1


def test_soft_edges_fall_off_and_do_not_move() -> None:
    sharp = cover([box_mask(0, 0, 0.5, 1, (64, 64))], (16, 16))[0]
    soft = cover([box_mask(0, 0, 0.5, 1, (64, 64))], (16, 16), 0.1)[0]
    assert set(sharp.unique().tolist()) == {0.0, 1.0}
    assert (soft[:, :-1] - soft[:, 1:] >= -1e-6).all()
    assert torch.allclose(soft[:, 7] + soft[:, 8], torch.ones(16), atol=1e-5)
    assert torch.allclose(soft[:, 0], torch.ones(16), atol=1e-3), "the border is not an edge"
    full = cover([torch.ones(64, 64)], (16, 16), 0.5)
    assert torch.allclose(full, torch.ones(1, 16, 16), atol=1e-5)


def _mixed_slowly(whole: Tensor, parts: Tensor, covered: Tensor) -> Tensor:
    """whole [B, N, C], parts [U, B, N, C], covered [U, N]: cell by cell."""
    result = torch.empty_like(whole)
    for n in range(whole.shape[1]):
        total = float(covered[:, n].sum())
        mean = sum(
            float(covered[u, n]) / max(1.0, total) * parts[u, :, n] for u in range(len(parts))
        )
        result[:, n] = (1 - min(1.0, total)) * whole[:, n] + mean
    return result


def test_attention_is_mixed_as_the_slow_loop_does() -> None:
    whole, parts = _random(2, 12, 5), _random(3, 2, 12, 5, label="parts")
    covered = _random(3, 12, label="covered")
    covered[:, 3] = 0
    covered[:, 4] = torch.tensor([1.0, 0, 0])
    covered[:, 5] = 1
    mixed = mix_attention(whole, parts, covered)
    assert torch.allclose(mixed, _mixed_slowly(whole, parts, covered), atol=1e-6)
    assert torch.equal(mixed[:, 3], whole[:, 3])
    assert torch.equal(mixed[:, 4], parts[0, :, 4])
    assert torch.allclose(mixed[:, 5], parts[:, :, 5].mean(0), atol=1e-6)


def test_noise_is_aggregated_as_the_corrected_equation_says() -> None:
    whole, parts = _random(2, 4, 3, 4), _random(3, 2, 4, 3, 4, label="parts")
    covered = (_random(3, 3, 4, label="covered") > 0.5).float()
    covered[:, 0, 0] = 0
    union, count = covered.amax(0), covered.sum(0)
    wanted = whole.clone()
    for y in range(3):
        for x in range(4):
            if union[y, x]:
                mean = sum(covered[u, y, x] * parts[u, :, :, y, x] for u in range(3))
                wanted[:, :, y, x] = 0.1 * whole[:, :, y, x] + 0.9 * mean / count[y, x]
    aggregated = aggregate_noise(whole, parts, covered)
    assert torch.allclose(aggregated, wanted, atol=1e-6)
    assert torch.equal(aggregated[:, :, 0, 0], whole[:, :, 0, 0]), "outside nothing is lost"


def test_alpha_goes_from_the_region_alone_to_the_whole_alone() -> None:
    whole, parts = _random(1, 4, 3, 4), _random(1, 1, 4, 3, 4, label="parts")
    everywhere = torch.ones(1, 3, 4)
    assert torch.equal(aggregate_noise(whole, parts, everywhere, 0.0), parts[0])
    assert torch.equal(aggregate_noise(whole, parts, everywhere, 1.0), whole)


def test_weights_add_up_to_one_under_soft_and_overlapping_regions() -> None:
    same = _random(1, 4, 3, 4)
    covered = 2 * _random(3, 3, 4, label="covered")
    aggregated = aggregate_noise(same, same.expand(3, 1, 4, 3, 4), covered.clamp(max=1), 0.3)
    assert torch.allclose(aggregated, same, atol=1e-6)
