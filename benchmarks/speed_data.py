"""What all sides of the comparison of training speed learn from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lifelong_core.backbone import Backbone
from lifelong_core.concepts import ConceptTask, make_task
from lifelong_core.training.priors import prior_prompt
from lifelong_core.world.streams import toys5

BATCH, PRIOR_BATCH = 8, 4
PHOTOS, PRIORS = 5, 32
STREAM_SEED = 2


@dataclass(frozen=True)
class SpeedData:
    """A toy's pictures as latents [n, 4, h, w] in model scale, and as many others as a lesson has
    prior pictures (further renders of the toy: what they show is of no matter here)."""

    task: ConceptTask
    concept: Tensor
    prior: Tensor

    @property
    def captions(self) -> tuple[str, ...]:
        return self.task.captions

    @property
    def prior_prompt(self) -> str:
        return prior_prompt(self.task.noun)

    @property
    def token(self) -> str:
        return self.task.token

    @property
    def noun(self) -> str:
        return self.task.noun


def speed_data(backbone: Backbone) -> SpeedData:
    """The first toy of the stream that other benchmarks use, encoded once for everybody.

    One caption for all its pictures, as in a lesson without captions and as in DreamBooth.
    """
    toy = toys5(STREAM_SEED)[0]
    size = backbone.family.default_size
    task = make_task(toy.token, toy.noun, toy.photos(PHOTOS), size=size)
    others = toy.photos(PRIORS, unseen=True)
    latents = torch.cat(
        [backbone.codec.encode(part) for part in torch.cat([task.images, others]).split(8)]
    )
    return SpeedData(task, latents[:PHOTOS], latents[PHOTOS:])
