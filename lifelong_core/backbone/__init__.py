"""The frozen base model: families, loading, noise schedule, latents, text."""

from ..prompts.conditioning import Conditioning
from .codec import LatentCodec, VaeCodec
from .families import FAMILIES, Family, family_named
from .model import Backbone, fingerprint
from .randomized import random_backbone
from .schedule import NoiseSchedule

__all__ = [
    "FAMILIES",
    "Backbone",
    "Conditioning",
    "Family",
    "LatentCodec",
    "NoiseSchedule",
    "VaeCodec",
    "family_named",
    "fingerprint",
    "random_backbone",
]
