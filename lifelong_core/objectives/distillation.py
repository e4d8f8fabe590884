"""Double distillation of "Mining your own secrets" (ICLR 2025), Eq 6: two teachers, one student.

  L = γ [H(p_new, p_s) + H(p_old, p_s)] + λ [‖ε_new - ε_s‖² + ‖ε_old - ε_s‖²]

p are diffusion-classifier scores over the concepts {c_n, c_0, c_j}, the outputs ε are compared
under the teacher's own concept: c_n for the newest teacher, c_j for the earlier one. All outputs
belong to the same noised pictures. Squares are means over a picture's entries, as in the lesson.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..classifier import ScoreLog, concept_errors, log_scores, noise_errors, scores
from .step import StepBatch

MODELS = ("student", "newest", "earlier")
CONCEPTS = ("current", "prior", "previous")
"""c_n, c_0 and c_j."""
OUTPUT_ROLES = ("student/current", "student/previous", "newest/current", "earlier/previous")
"""What `DistillOutputs` needs of a batch: roles "<model>/<concept>" of equally many rows."""
SCORE_ROLES = tuple(f"{model}/{concept}" for model in MODELS for concept in CONCEPTS)
"""What `DistillScores` needs."""


def output_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """‖ε_teacher - ε_student‖² of outputs [B, 4, h, w], mean over everything; a scalar.

    The teacher's side is a constant.
    """
    return (teacher.detach() - student).square().mean()


def score_cross_entropy(
    teacher: Tensor, student: Tensor, teacher_temperature: float, student_temperature: float
) -> Tensor:
    """H(p_teacher, p_student) from denoising errors [B, k] of k concepts (Eq 3); mean over B.

    The teacher's side is a constant.
    """
    wanted = scores(teacher.detach(), teacher_temperature)
    return -(wanted * log_scores(student, student_temperature)).sum(dim=1).mean()


@dataclass(frozen=True)
class DistillOutputs:
    """The MSE terms of Eq 6; `weight` is λ."""

    weight: float
    name: str = "distillation"

    def __call__(self, batch: StepBatch) -> Tensor:
        def output(role: str) -> Tensor:
            return batch.output[batch.roles[role]]

        newest = output_distance(output("newest/current"), output("student/current"))
        return newest + output_distance(output("earlier/previous"), output("student/previous"))


@dataclass(frozen=True)
class DistillScores:
    """The cross-entropy terms of Eq 6; `weight` is γ.

    space: "own" compares denoising errors of the model's own output, "noise" of the noise that it
    stands for. log: counts the newest teacher's scores.
    """

    weight: float
    teacher_temperature: float = 0.05
    student_temperature: float = 1.0
    space: str = "own"
    log: ScoreLog = field(default_factory=ScoreLog)
    name: str = "scores"

    def __call__(self, batch: StepBatch) -> Tensor:
        student, newest, earlier = (self._errors(batch, model) for model in MODELS)
        self.log.add(scores(newest.detach(), self.teacher_temperature))
        temperatures = self.teacher_temperature, self.student_temperature
        newer = score_cross_entropy(newest, student, *temperatures)
        return newer + score_cross_entropy(earlier, student, *temperatures)

    def _errors(self, batch: StepBatch, model: str) -> Tensor:
        """Denoising errors [B, 3] of a model, one column per concept."""
        rows = [batch.roles[f"{model}/{concept}"] for concept in CONCEPTS]
        outputs = torch.stack([batch.output[row] for row in rows], dim=1)
        errors = concept_errors(outputs, batch.target[rows[0]])
        if self.space == "own":
            return errors
        return noise_errors(errors, batch.timesteps[rows[0]], batch.backbone.schedule)
