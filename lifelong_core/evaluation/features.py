"""Similarity of pictures to pictures and to words: IA and TA of the lifelong papers.

Cosines of features share a large common part: any two pictures of the world look alike to a raw
cosine. Taking away the mean over many base pictures leaves what tells a picture apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..world.clip import WorldClip
from ..world.judge import Judge
from .alignment import own_alignment, pairwise_alignment


@dataclass(frozen=True)
class FeatureSpace:
    """A way to turn pictures [B, 3, H, W] in [0, 1] into features [B, D], and what is common to
    all pictures: `mean` [D], or None for raw cosines."""

    name: str
    encode: Callable[[Tensor], Tensor]
    mean: Tensor | None = None

    def centred_on(self, base_pictures: Tensor) -> FeatureSpace:
        """The same space, seen from the mean over `base_pictures`.

        Raises InputError for fewer than two pictures: their own mean would leave nothing.
        """
        if len(base_pictures) < 2:
            raise InputError("Give at least two base pictures, better some hundreds, to centre on.")
        return replace(self, mean=self.encode(base_pictures).mean(0))

    def directions(self, images: Tensor) -> Tensor:
        """[B, D] of length one, centred if the space is."""
        features = self.encode(images)
        return F.normalize(features if self.mean is None else features - self.mean, dim=-1)


def clip_space(clip: WorldClip) -> FeatureSpace:
    """Image features of the world CLIP, raw."""
    return FeatureSpace("world_clip", clip.encode_images)


def judge_space(judge: Judge) -> FeatureSpace:
    """Features of the judge at the objects' places, raw."""
    return FeatureSpace("world_judge", judge.features)


def image_alignment(space: FeatureSpace, generated: Tensor, references: Tensor) -> Tensor:
    """IA per generated picture, [G]: its mean cosine to the reference pictures [R, 3, H, W]."""
    return pairwise_alignment(space.directions(generated), space.directions(references))


def text_alignment(clip: WorldClip, generated: Tensor, prompts: Sequence[str]) -> Tensor:
    """TA per generated picture, [G]: raw cosine to its own prompt, concept tokens left out.

    Raises InputError unless there is one prompt per picture.
    """
    return own_alignment(clip.encode_images(generated), clip.encode_texts(prompts))
