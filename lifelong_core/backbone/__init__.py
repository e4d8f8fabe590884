"""The frozen base model: families, loading, noise schedule, latents, text."""

from ..prompts.conditioning import Conditioning
from .codec import LatentCodec, VaeCodec
from .families import FAMILIES, Family, family_named
from .identity import fingerprint, weights_hash
from .load import backbone_from_parts, load_backbone
from .model import Backbone
from .randomized import random_backbone
from .save import save_single_file
from .schedule import NoiseSchedule

__all__ = [
    "FAMILIES",
    "Backbone",
    "Conditioning",
    "Family",
    "LatentCodec",
    "NoiseSchedule",
    "VaeCodec",
    "backbone_from_parts",
    "family_named",
    "fingerprint",
    "load_backbone",
    "random_backbone",
    "save_single_file",
    "weights_hash",
]
