"""Terms of a lesson's loss, one per file, and the batch that they look at."""

from .denoising import Denoising, denoising, prior_preservation
from .predict import Predictor
from .step import StepBatch, Term

__all__ = [
    "Denoising",
    "Predictor",
    "StepBatch",
    "Term",
    "denoising",
    "prior_preservation",
]
