"""Latents of the lesson's pictures, and pictures of the plain noun drawn once."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.training import priors
from lifelong_core.training.priors import prior_latents
from lifelong_core.training.views import CROPS, encode_views


@dataclass
class Identity:
    """A codec that keeps pictures as they are, and a device to put them on."""

    device: torch.device = torch.device("cpu")

    @property
    def codec(self) -> Identity:
        return self

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return images


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


def test_views_are_the_picture_its_crops_and_their_mirrors() -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = encode_views(Identity(), images, flip=False, crop=False, seed=0)
    assert torch.equal(plain, images[:, None])
    both = encode_views(Identity(), images, flip=True, crop=True, seed=0)
    assert both.shape == (2, 2 * (1 + CROPS), 3, 32, 32)
    half = 1 + CROPS
    assert torch.equal(both[:, 0], images)
    assert torch.equal(both[:, half:], both[:, :half].flip(-1))
    again = encode_views(Identity(), images, flip=False, crop=True, seed=0)
    assert torch.equal(again, both[:, :half])
    other = encode_views(Identity(), images, flip=False, crop=True, seed=1)
    assert not torch.equal(other[:, 1:], again[:, 1:])


def test_crops_show_parts_of_their_own_picture_at_full_size() -> None:
    """On a ramp, an enlarged crop of 70 % or more is a ramp of at least 0.6 of its height."""
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    crops = encode_views(Identity(), ramp, flip=False, crop=True, seed=0)[0, 1:]
    spans = crops[..., -1] - crops[..., 0]
    assert float(spans.min()) > 0.6
    assert float(spans.min()) < 0.98


def draw(backbone: Backbone, folder: Path | None, **changes: object) -> torch.Tensor:
    options = {"size": 64, "seed": 0, "autocast": None, "folder": folder} | changes
    return prior_latents(backbone, str(options.pop("noun", "dog")), 3, **options)


def test_pictures_of_the_noun_are_drawn_once(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(priors, "SAMPLER_STEPS", 2)
    monkeypatch.setattr(priors, "CHUNK", 2)
    calls = []
    generate = priors.generate
    monkeypatch.setattr(
        priors, "generate", lambda *a, **k: calls.append(len(a[1])) or generate(*a, **k)
    )
    first = draw(backbone, tmp_path)
    assert first.shape == (3, 4, 8, 8)
    assert not torch.equal(first[0], first[2])
    assert calls == [2, 1]
    assert torch.equal(draw(backbone, tmp_path), first)
    assert calls == [2, 1]
    assert torch.equal(draw(backbone, None), first)
    for change in ({"seed": 1}, {"noun": "cat"}, {"size": 72}):
        calls.clear()
        draw(backbone, tmp_path, **change)
        assert calls == [2, 1], change


def test_a_cancelled_drawing_keeps_what_it_finished(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(priors, "SAMPLER_STEPS", 2)
    monkeypatch.setattr(priors, "CHUNK", 2)
    steps: list[int] = []

    def cancel() -> None:
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(backbone, tmp_path, on_progress=cancel)
    assert len(list(tmp_path.iterdir())) == 1
    steps.clear()
    resumed = draw(backbone, tmp_path, on_progress=lambda: steps.append(1))
    assert len(steps) == 2
    assert torch.equal(resumed, draw(backbone, None))


def test_a_damaged_file_is_drawn_again(
    backbone: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(priors, "SAMPLER_STEPS", 2)
    first = draw(backbone, tmp_path)
    path = next(tmp_path.iterdir())
    data = bytearray(path.read_bytes())
    data[-2] ^= 0x40
    path.write_bytes(bytes(data))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(draw(backbone, tmp_path), first)
    assert "damaged" in caplog.text
