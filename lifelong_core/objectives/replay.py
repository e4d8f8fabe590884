"""Replay of pictures of earlier concepts: TAME and ECD of L2DM (Sun et al. 2024, Eq 4 and 6).

  L_TAME = α E ‖ε - ε_θ(ẑ_t | ĉ)‖²      the remembered pictures, as they are
  L_ECD  = γ E ‖ε_old - ε_θ(ẑ_t | ĉ)‖²  as the model before the lesson would draw them

Both are squares of one output, so their sum is one regression on a mix of both answers:

  α ‖ε - ε_θ‖² + γ ‖ε_old - ε_θ‖² = (α + γ) ‖ε̄ - ε_θ‖² + const,  ε̄ = (α ε + γ ε_old) / (α + γ)

The paper sums over earlier concepts, which lets their weight grow with their number; here it is
their mean: a batch holds each of them equally often. Outputs are the model's own (noise or v).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..prompts import ConceptVectors, PromptEncoder
from .step import StepBatch

ROLE = "replay"
Teacher = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Replay:
    """Mean over the rows of role "replay" of w(t) · mean((ε̄ - output)²); `weight` is α + γ.

    picture_weight: α, of the pictures as they are. teacher_weight: γ, of the teacher's answers;
    with 0 the teacher is never asked. teacher: lets the adapter of the lesson before answer while
    its block lasts. min_snr_gamma: as in `Denoising`.
    own_prompts: where adapters change the text encoders: what the teacher encodes the prompts
    with, and the frozen vectors of the earlier concepts.
    """

    picture_weight: float
    teacher_weight: float
    teacher: Teacher
    min_snr_gamma: float = 0.0
    own_prompts: tuple[PromptEncoder, Mapping[str, ConceptVectors]] | None = None
    name: str = ROLE

    @property
    def weight(self) -> float:
        """α + γ."""
        return self.picture_weight + self.teacher_weight

    def __call__(self, batch: StepBatch) -> Tensor:
        rows = batch.roles[ROLE]
        # Before the teacher stands in: all terms share this one forward pass of the student.
        output = batch.output[rows]
        error = (self._wanted(batch, rows) - output).square().mean(dim=(1, 2, 3))
        if self.min_snr_gamma:
            schedule = batch.backbone.schedule
            error = error * schedule.min_snr_weight(batch.timesteps[rows], self.min_snr_gamma)
        return error.mean()

    def _wanted(self, batch: StepBatch, rows: slice) -> Tensor:
        """ε̄ [R, 4, h, w]."""
        if not self.teacher_weight:
            return batch.target[rows]
        share = self.teacher_weight / self.weight
        return torch.lerp(batch.target[rows], self._taught(batch, rows), share)

    @torch.no_grad()
    def _taught(self, batch: StepBatch, rows: slice) -> Tensor:
        """The teacher's output for the same noised pictures under the same prompts."""
        used, places = torch.unique(batch.prompt_rows[rows], return_inverse=True)
        with self.teacher():
            if self.own_prompts is None:
                prompts = batch.prompts[used]
            else:
                cache, vectors = self.own_prompts
                prompts = cache.encode([batch.texts[row] for row in used.tolist()], vectors)
            return batch.predictor(batch.noisy[rows], batch.timesteps[rows], prompts, places)
