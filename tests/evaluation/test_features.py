"""IA and TA: what they compare, and what centring takes away."""

from __future__ import annotations

import pytest
import torch

from lifelong_core.errors import InputError
from lifelong_core.evaluation import (
    FeatureSpace,
    clip_space,
    image_alignment,
    judge_space,
    text_alignment,
)
from lifelong_core.world.clip import WorldClip, new_clip
from lifelong_core.world.judge import Judge
from lifelong_core.world.judge_net import new_judge_net

COMMON = torch.tensor([10.0, 0.0, 0.0])


def mean_colour(images: torch.Tensor) -> torch.Tensor:
    """A stand-in for features: the mean colour and something that all pictures share."""
    return images.mean((2, 3)) + COMMON


def flat(*colour: float) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, 4, 4)


def test_centring_takes_away_what_all_pictures_share() -> None:
    space = FeatureSpace("colour", mean_colour)
    green, blue = flat(0, 1, 0), flat(0, 0, 1)
    assert image_alignment(space, green, blue) > 0.95
    centred = space.centred_on(torch.cat([green, blue]))
    assert image_alignment(centred, green, blue) < -0.99
    assert image_alignment(centred, green, green) > 0.99
    assert space.mean is None
    with pytest.raises(InputError, match="two base pictures"):
        space.centred_on(green)


def test_alignment_is_the_mean_over_references_for_each_picture() -> None:
    space = FeatureSpace("colour", lambda images: images.mean((2, 3)))
    generated = torch.cat([flat(1, 0, 0), flat(0, 1, 0)])
    references = torch.cat([flat(1, 0, 0), flat(0, 0, 1)])
    assert image_alignment(space, generated, references).tolist() == pytest.approx([0.5, 0.0])


def test_text_alignment_pairs_pictures_with_their_own_prompts() -> None:
    clip = WorldClip(new_clip(0))
    images = torch.rand(2, 3, 64, 64)
    scores = text_alignment(clip, images, ["a dog", "a cat"])
    swapped = text_alignment(clip, images, ["a cat", "a dog"])
    assert scores.shape == (2,) and not torch.allclose(scores, swapped)
    assert torch.allclose(scores, text_alignment(clip, images, ["a embedding:x dog", "a cat"]))
    with pytest.raises(InputError, match="1 prompts"):
        text_alignment(clip, images, ["a dog"])


def test_both_models_give_spaces() -> None:
    images = torch.rand(2, 3, 128, 128)
    for space in (clip_space(WorldClip(new_clip(0))), judge_space(Judge(new_judge_net(0)))):
        assert torch.allclose(space.directions(images).norm(dim=1), torch.ones(2), atol=1e-5)
