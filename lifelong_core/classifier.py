"""A diffusion model as a classifier of concepts ("Mining your own secrets", ICLR 2025, Eq 3).

The concept under which a picture is denoised best is the one that it most likely shows. All
concepts of a trial share timestep and noise: over timesteps the error varies by orders of
magnitude more than over concepts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .backbone import Conditioning, NoiseSchedule

SCORE_MEANS = ("entropy_share", "highest_score", "accuracy")
"""What a phase reports of its scores: entropy as a share of log k, highest probability, and how
often the pictures' own concept came first."""

INERT = 0.99
"""Scores with more than this share of the highest entropy hardly tell the concepts apart."""

Predict = Callable[[Tensor, Tensor, Conditioning, Tensor], Tensor]
"""(noisy [R, 4, h, w], timesteps [R], U prompts, rows [R]) -> the model's own output [R, 4, h, w],
where row r is conditioned on prompt rows[r]: an `objectives.Predictor`."""

logger = logging.getLogger(__name__)


def concept_outputs(
    predict: Predict, noisy: Tensor, timesteps: Tensor, prompts: Conditioning, rows: Tensor
) -> Tensor:
    """The model's own outputs [B, k, 4, h, w] for B pictures under k concepts each.

    noisy: [B, 4, h, w]; timesteps: [B]; prompts: encoded; rows: [B, k] which of them are the
    picture's concepts. One forward pass of B · k rows, picture by picture.
    """
    k = rows.shape[1]
    output = predict(
        noisy.repeat_interleave(k, dim=0),
        timesteps.repeat_interleave(k, dim=0),
        prompts,
        rows.flatten(),
    )
    return output.unflatten(0, rows.shape)


def concept_errors(outputs: Tensor, target: Tensor) -> Tensor:
    """e_i [B, k]: mean squared error of outputs [B, k, 4, h, w] against target [B, 4, h, w].

    Eq 3 writes a sum over the latent's entries; the paper's temperatures presuppose their mean
    (with the sum every score would be one-hot).
    """
    return (outputs - target.unsqueeze(1)).square().mean(dim=(2, 3, 4))


def noise_errors(errors: Tensor, timesteps: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Errors [B, k] of the model's own output -> errors of the noise that it stands for.

    noise - noise' = sqrt(ab) (v - v') for models that predict v: the same errors, weighted over
    timesteps.
    """
    if schedule.prediction_type == "epsilon":
        return errors
    return errors * schedule.alphas_cumprod.to(errors.device)[timesteps].unsqueeze(1)


def log_scores(errors: Tensor, temperature: float) -> Tensor:
    """log p(c_i | x) [B, k] of Eq 3, normalised over the k concepts given."""
    return torch.log_softmax(-errors / temperature, dim=1)


def scores(errors: Tensor, temperature: float) -> Tensor:
    """p(c_i | x) [B, k] = exp(-e_i / τ) / Σ_j exp(-e_j / τ) (Eq 3)."""
    return log_scores(errors, temperature).exp()


def entropy(scores: Tensor) -> Tensor:
    """Entropy [B] of scores [B, k] in nats; at most log k."""
    return torch.special.entr(scores).sum(dim=1)


@dataclass
class ScoreLog:
    """What the scores of a phase were like; column 0 is the pictures' own concept.

    Sums over pictures: entropy as a share of log k, highest probability, first place of the own
    concept.
    """

    pictures: int = 0
    entropy: float = 0.0
    highest: float = 0.0
    right: float = 0.0

    def add(self, scores: Tensor) -> None:
        """Count scores [B, k], k ≥ 2."""
        share = entropy(scores) / math.log(scores.shape[1])
        highest, first = scores.max(dim=1)
        sums = torch.stack([share.sum(), highest.sum(), (first == 0).sum().to(share)])
        self.pictures += len(scores)
        for name, value in zip(("entropy", "highest", "right"), sums.tolist(), strict=True):
            setattr(self, name, getattr(self, name) + value)

    def report(self, phase: str) -> dict[str, float]:
        """Means over the pictures; a warning in the log when the scores were inert."""
        sums = (self.entropy, self.highest, self.right)
        values = {name: one / self.pictures for name, one in zip(SCORE_MEANS, sums, strict=True)}
        logger.info("Classifier scores of %s: %s", phase, values)
        if values["entropy_share"] > INERT:
            logger.warning(
                "The classifier scores of %s are almost equal for all concepts (entropy %.2f %% "
                "of the highest): they say next to nothing about what a picture shows. Scores of "
                "a lower temperature say more.",
                phase,
                100.0 * values["entropy_share"],
            )
        return values
