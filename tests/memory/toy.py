"""A small remembered past: states without a model, and feature models that need none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lifelong_core.adapters import AdapterSpec
from lifelong_core.concepts import Concept, ConceptTask, make_task
from lifelong_core.memory.features import NamedFeatures
from lifelong_core.state import LifelongState, TaskRecord

BASE = "demo-v-1234"
WEIGHTS = {"unet.mid.attn2.to_k.down": torch.ones(2, 5), "unet.mid.attn2.to_k.up": torch.ones(7, 2)}


def colours(images: Tensor) -> Tensor:
    """The mean colour of a picture's quarters, [B, 12]."""
    return F.adaptive_avg_pool2d(images, 2).flatten(1) + 1e-3


COLOURS = NamedFeatures("colours:1", colours)
OTHERS = NamedFeatures("shapes:1", lambda images: colours(images)[:, :6])


def task(token: str, pictures: int = 2) -> ConceptTask:
    draw = torch.Generator().manual_seed(len(token))
    images = [torch.rand(3, 64, 64, generator=draw) for _ in range(pictures)]
    captions = [f"photo {n} of embedding:{token} dog" for n in range(pictures)]
    return make_task(token, "dog", images, captions, size=64)


def record(taught: ConceptTask) -> TaskRecord:
    concept = Concept(taught.token, taught.noun, {"clip_l": torch.ones(1, 8)})
    return TaskRecord(concept, taught.content_hash, {}, {}, {})


def state(taught: Sequence[ConceptTask], base: str = BASE) -> LifelongState:
    records = tuple(record(one) for one in taught)
    return LifelongState("demo", base, AdapterSpec(rank=2), WEIGHTS, records)
