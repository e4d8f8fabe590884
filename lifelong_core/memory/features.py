"""What a picture is remembered by: the direction that a frozen image encoder gives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..files import content_hash, file_hash

DIGITS = 16
"""So many hexadecimal digits of the weights' hash tell models apart."""


class FeatureModel(Protocol):
    """An image encoder, I of L2DM's Eq 5."""

    @property
    def fingerprint(self) -> str:
        """`<name>:<hash>`: equal for equal weights, on every machine."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> features [B, D]."""
        ...


@dataclass(frozen=True)
class NamedFeatures:
    """A `FeatureModel` from a function and its fingerprint."""

    fingerprint: str
    encode: Callable[[Tensor], Tensor]


@lru_cache(maxsize=1)
def world_features() -> NamedFeatures:
    """The shipped CLIP of the demo world, D = 128. For photos, choose a model that saw some.

    Raises ModelError when its weights are missing.
    """
    from ..world.clip import load_world_clip  # brings open_clip along, which lessons do not need

    clip = load_world_clip()
    weights = content_hash(dict(clip.model.state_dict()))
    return NamedFeatures(fingerprint("world_clip", weights), clip.encode_images)


def features_named(text: str) -> NamedFeatures:
    """`world_clip`, or `<model>=<file of its weights>` with a model of open_clip or timm, such as
    `ViT-L-14=clip.pt`.

    Nothing is downloaded. Raises InputError for other texts, ModelError for missing or unfit
    weights.
    """
    from ..evaluation.extractors import WORLD, extractor_named

    if text == WORLD:
        return world_features()
    extractor = extractor_named(text)
    name, _, file = text.partition("=")
    return NamedFeatures(fingerprint(name, file_hash(file)), extractor.images)


def fingerprint(name: str, weights_hash: str) -> str:
    """`<name>:<first digits of the hash>`."""
    return f"{name}:{weights_hash[:DIGITS]}"


@torch.no_grad()
def directions(model: FeatureModel, images: Tensor) -> Tensor:
    """Features of `images` [B, 3, H, W], [B, D] fp32 of length one on the CPU.

    Raises InputError when the model gives anything but one finite row per picture.
    """
    features = model.encode(images).detach().to("cpu", torch.float32)
    if features.dim() != 2 or len(features) != len(images):
        raise InputError(
            f"The feature model {model.fingerprint} gave {tuple(features.shape)} for "
            f"{len(images)} pictures; expected one row per picture. Use an image encoder that "
            "gives one vector per picture, such as a CLIP."
        )
    if not bool(torch.isfinite(features).all()) or not bool(features.norm(dim=1).all()):
        raise InputError(
            f"The feature model {model.fingerprint} gave features that are not finite, or zero. "
            "Load it in another precision, or use another one."
        )
    return F.normalize(features, dim=1)
