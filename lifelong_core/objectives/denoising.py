"""The denoising loss of latent diffusion (Rombach et al. 2022, eq. 3), per role of the batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .step import StepBatch


@dataclass(frozen=True)
class Denoising:
    """Mean over the rows of `role` of w(t) · mean((target - output)²).

    The target is the model's own (noise or v), as is the error. `min_snr_gamma` 0 gives w = 1,
    otherwise w is `NoiseSchedule.min_snr_weight`.
    """

    name: str
    role: str
    weight: float = 1.0
    min_snr_gamma: float = 0.0

    def __call__(self, batch: StepBatch) -> Tensor:
        rows = batch.roles[self.role]
        error = (batch.output[rows] - batch.target[rows]).square().mean(dim=(1, 2, 3))
        if self.min_snr_gamma:
            schedule = batch.backbone.schedule
            error = error * schedule.min_snr_weight(batch.timesteps[rows], self.min_snr_gamma)
        return error.mean()


def denoising(*, min_snr_gamma: float = 0.0) -> Denoising:
    """L_D: the pictures of the concept."""
    return Denoising("denoising", "concept", 1.0, min_snr_gamma)


def prior_preservation(weight: float, *, min_snr_gamma: float = 0.0) -> Denoising:
    """L_prior (Ruiz et al. 2023, eq. 2): the base model's own pictures of the plain noun."""
    return Denoising("prior", "prior", weight, min_snr_gamma)
