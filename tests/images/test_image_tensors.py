"""Cropping to the training size, and pictures that come as ComfyUI batches."""

from __future__ import annotations

import pytest
import torch

from lifelong_core.errors import InputError
from lifelong_core.images import fit, from_batch


@pytest.mark.parametrize(
    ("height", "width"), [(64, 64), (200, 90), (90, 200), (65, 1000), (40, 33), (1000, 1000)]
)
def test_fit_gives_the_size_and_keeps_a_plain_colour(height: int, width: int) -> None:
    image = torch.tensor([0.2, 0.5, 1.0]).view(3, 1, 1).expand(3, height, width)
    fitted = fit(image, 64)
    assert fitted.shape == (3, 64, 64) and fitted.is_contiguous()
    assert torch.allclose(fitted, image[:, :1, :1].expand_as(fitted), atol=1e-5)


def test_fit_takes_the_centre() -> None:
    image = torch.zeros(3, 100, 300)
    image[:, :, 100:200] = 1.0
    assert torch.equal(fit(image, 100), torch.ones(3, 100, 100))
    assert torch.allclose(fit(image, 50), torch.ones(3, 50, 50), atol=1e-6)
    assert torch.equal(fit(image.mT, 100), torch.ones(3, 100, 100))


def test_fit_is_antialiased() -> None:
    noise = (torch.rand(3, 512, 512, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    # Of independent pixels, means over 8 × 8 spread by 0.5 / 8; single pixels by 0.5.
    assert float(fit(noise, 64).std()) < 0.1


def test_fit_stays_in_range_and_leaves_its_input_alone() -> None:
    image = (torch.rand(3, 90, 70, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    before = image.clone()
    for size in (70, 35, 200):
        fitted = fit(image, size)
        assert float(fitted.min()) >= 0.0 and float(fitted.max()) <= 1.0
        fitted.zero_()
    assert torch.equal(image, before)


def test_batch_of_rgb() -> None:
    batch = torch.rand(2, 70, 80, 3, generator=torch.Generator().manual_seed(0))
    images = from_batch(batch)
    assert [image.shape for image in images] == [(3, 70, 80)] * 2
    assert torch.equal(images[1], batch[1].permute(2, 0, 1))
    images[0].zero_()
    assert float(batch[0].max()) > 0, "ComfyUI shares its tensors"


def test_batch_with_alpha_is_laid_on_white() -> None:
    batch = torch.zeros(1, 70, 70, 4)
    batch[:, :, :35] = torch.tensor([0.2, 0.4, 0.6, 0.25])
    (image,) = from_batch(batch)
    assert torch.allclose(image[:, 0, 0], torch.tensor([0.8, 0.85, 0.9]))
    assert torch.equal(image[:, 0, 60], torch.ones(3))


def test_batch_of_grey_and_half_precision() -> None:
    (image,) = from_batch(torch.full((1, 70, 70, 1), 0.5, dtype=torch.float16))
    assert image.shape == (3, 70, 70) and image.dtype == torch.float32
    assert image.unique().tolist() == [0.5]


def test_small_overshoot_of_resize_filters_is_clamped() -> None:
    batch = torch.full((1, 70, 70, 3), 1.04)
    batch[:, 0] = -0.02
    (image,) = from_batch(batch)
    assert (float(image.min()), float(image.max())) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        (torch.zeros(70, 70, 3), "shape"),
        (torch.zeros(1, 3, 70, 70), "shape"),
        (torch.zeros(1, 70, 70, 2), "shape"),
        ([1], "list"),
        (torch.zeros(0, 70, 70, 3), "empty batch"),
        (torch.zeros(1, 70, 20, 3), "too small: 20 x 70"),
        (torch.zeros(1, 70, 70, 3, dtype=torch.uint8), "uint8"),
        (torch.full((1, 70, 70, 3), float("nan")), "not finite"),
        (torch.full((1, 70, 70, 3), float("inf")), "not finite"),
        (torch.full((1, 70, 70, 3), 255.0), "from 255 to 255"),
    ],
)
def test_unusable_batches_are_refused(batch: object, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        from_batch(batch, "photos")
    assert "photos" in str(caught.value)


def test_the_broken_picture_is_named() -> None:
    batch = torch.zeros(3, 70, 70, 3)
    batch[1, 3, 3, 0] = float("nan")
    with pytest.raises(InputError, match="Picture 2 of images"):
        from_batch(batch)
