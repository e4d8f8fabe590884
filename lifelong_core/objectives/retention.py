"""Learning without Forgetting (Li & Hoiem 2016) for diffusion, without any old picture.

L_LwF = E ‖ε_{k-1}(z_t, c') - ε(z_t, c')‖²,  z: the lesson's own pictures,
c': half of the time the prompt of a random earlier concept, otherwise the plain class noun's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..prompts import ConceptVectors, PromptEncoder
from .step import StepBatch


@dataclass(frozen=True)
class Retention:
    """Mean over the rows of role "concept" of w(t) · mean((teacher - student)²).

    teacher: lets the adapter of the lesson before answer while its block lasts.
    earlier: prompts of the earlier concepts; noun: that of the plain class noun.
    vectors: token -> encoder -> frozen vectors of the earlier concepts.
    `min_snr_gamma`: as in `Denoising`, so that both losses weight timesteps alike.
    """

    teacher: Callable[[], AbstractContextManager[None]]
    earlier: Sequence[str]
    noun: str
    vectors: Mapping[str, ConceptVectors]
    prompts: PromptEncoder
    weight: float = 1.0
    min_snr_gamma: float = 0.0
    name: str = field(default="retention", init=False)

    def __post_init__(self) -> None:
        # All at once, so that no encoding depends on where a run was resumed.
        with torch.no_grad():
            self.prompts.encode([self.noun, *self.earlier], self.vectors)

    def __call__(self, batch: StepBatch) -> Tensor:
        concept = batch.roles["concept"]
        noisy, timesteps = batch.noisy[concept], batch.timesteps[concept]
        prompts = self._draw(batch, len(noisy))
        unique = list(dict.fromkeys(prompts))
        rows = torch.tensor([unique.index(prompt) for prompt in prompts])

        def output() -> Tensor:
            encoded = self.prompts.encode(unique, self.vectors)
            return batch.predictor(noisy, timesteps, encoded, rows)

        with torch.no_grad(), self.teacher():
            wanted = output()
        error = (wanted - output()).square().mean(dim=(1, 2, 3))
        if self.min_snr_gamma:
            schedule = batch.backbone.schedule
            error = error * schedule.min_snr_weight(timesteps, self.min_snr_gamma)
        return error.mean()

    def _draw(self, batch: StepBatch, count: int) -> list[str]:
        draw = batch.generator(self.name)
        plain = torch.rand(count, generator=draw) < 0.5
        which = torch.randint(len(self.earlier), (count,), generator=draw)
        return [
            self.noun if is_plain else self.earlier[place]
            for is_plain, place in zip(plain.tolist(), which.tolist(), strict=True)
        ]
