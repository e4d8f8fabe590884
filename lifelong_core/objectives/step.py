"""What a term of the loss is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ..backbone import Backbone, Conditioning
from ..seeding import generator
from .predict import RunsUnet


@dataclass(frozen=True)
class StepBatch:
    """One batch of noised latents, whose rows play different roles in the loss.

    roles: role ("concept", "prior", …) -> its rows.
    latents, noise, noisy, target: [B, 4, h, w] fp32; target is what the model should answer.
    timesteps: [B] integers in [0, 999].
    prompts, prompt_rows: the U different prompts, encoded, and which of them each row has [B].
    texts: the U prompts as they are written, for terms that encode them anew.
    seed, index: every draw of a term comes from `generator`, which is made of them.
    """

    predictor: RunsUnet
    roles: Mapping[str, slice]
    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    noisy: Tensor
    target: Tensor
    prompts: Conditioning
    prompt_rows: Tensor
    seed: int
    index: int
    texts: tuple[str, ...] = ()

    @property
    def backbone(self) -> Backbone:
        return self.predictor.backbone

    @cached_property
    def output(self) -> Tensor:
        """The model's own output [B, 4, h, w], fp32: one forward pass that all terms share."""
        return self.predictor(self.noisy, self.timesteps, self.prompts, self.prompt_rows)

    def generator(self, *labels: str | int) -> torch.Generator:
        """A generator that depends on seed, batch and `labels` alone."""
        return generator(self.seed, "term", self.index, *labels)


class Term(Protocol):
    """One summand of the loss."""

    @property
    def name(self) -> str:
        """Under which its value is reported."""
        ...

    @property
    def weight(self) -> float:
        """Its factor in the loss; values are reported without it."""
        ...

    def __call__(self, batch: StepBatch) -> Tensor:
        """The term's value for one batch, a scalar."""
        ...
