"""The settings of a consolidation, documented once for the command line, the node and the reader.

Symbols are those of "Mining your own secrets" (ICLR 2025).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..fields import PRECISIONS, check_fields, choice, number, switch

SPACES = ("own", "noise")


@dataclass(frozen=True)
class ConsolidationSettings:
    """What happens after a lesson. Every field's metadata holds `help` and its `min` and `max` or
    `options`; the defaults are the demo model's (see `consolidation_defaults`).

    Raises InputError for values out of range.
    """

    subset: int = number(
        5, "concepts that are told apart at a time: prior, current and k - 2 earlier (k)", 2, 1000
    )
    delta: float = number(0.5, "share of the classifier's term in the Fisher's loss (δ)", 0, 100)
    temperature: float = number(1.0, "of the scores in the Fisher's loss (τ)", 1e-6, 1e6)
    gamma: float = number(0.1, "weight of distilling the classifier's scores (γ)", 0, 1000)
    distillation_weight: float = number(1.5, "weight of distilling the outputs (λ)", 0, 1000)
    teacher_temperature: float = number(0.05, "of the teachers' scores", 1e-6, 1e6)
    student_temperature: float = number(1.0, "of the student's scores", 1e-6, 1e6)
    space: str = choice(
        "own", "errors of the scores: in the model's own output, or in its noise", SPACES
    )
    fisher_iterations: int = number(60, "iterations of estimating the Fisher", 2, 100_000)
    distillation_iterations: int = number(60, "iterations of distilling", 1, 100_000)
    learning_rate: float = number(
        1e-3, "step size of distilling a LoRA; other adapters' differ as in lessons", 1e-12, 1.0
    )
    shift_iterations: int = number(60, "iterations of shifting earlier tokens", 1, 100_000)
    shift_learning_rate: float = number(2e-3, "step size of shifting them", 1e-12, 1.0)
    batch_size: int = number(3, "pictures per batch; each is seen with every concept", 1, 256)
    accumulation: int = number(1, "batches per iteration", 1, 1024)
    precision: str = choice(
        "fp32", "number format of the passes; weights and Fisher are fp32", PRECISIONS
    )
    gradient_checkpointing: bool = switch("much less memory for about a third more time")
    seed: int = number(0, "same seed, pictures and settings: same result", 0, 2**64 - 1)

    def __post_init__(self) -> None:
        check_fields(self)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for headers and hashes."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ConsolidationSettings:
        """The inverse of `to_json`. Raises InputError for fields that are unknown here."""
        try:
            return cls(**value)
        except TypeError as error:
            raise InputError(f"Consolidation settings cannot be used: {error}.") from error


_LARGE = ConsolidationSettings(
    fisher_iterations=200,
    distillation_iterations=200,
    learning_rate=5e-4,
    shift_iterations=200,
    shift_learning_rate=2e-4,
    batch_size=1,
    accumulation=8,
    precision="bf16",
)
_DEFAULTS = {
    "demo": ConsolidationSettings(),
    "sd1": _LARGE,
    "sd2": _LARGE,
    "sdxl": dataclasses.replace(_LARGE, gradient_checkpointing=True),
}


def consolidation_defaults(family: str) -> ConsolidationSettings:
    """Settings for a family of base models.

    sd1, sd2, sdxl: the paper's section 4 (200 iterations of 8 accumulated samples for a lesson of
    1000, k = 5, δ = 0.5, γ = 0.1, λ = 1.5, temperatures 0.05 and 1). demo: the same share of its
    lesson's 300 steps, at the lesson's step size. Tokens are shifted in a fifth of the steps.
    Raises InputError for other names.
    """
    if family not in _DEFAULTS:
        raise InputError(
            f"No consolidation settings for {family!r}; known are {', '.join(_DEFAULTS)}."
        )
    return _DEFAULTS[family]
