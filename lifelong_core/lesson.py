"""The settings of a lesson, documented once for the command line, the node and the reader."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .adapters.spec import MAX_RANK, AdapterSpec
from .errors import InputError
from .fields import PRECISIONS, check_fields, choice, number, switch

LR_SCHEDULES = ("constant", "linear", "cosine")
NORM_LEARNING_RATE = 1e-6


@dataclass(frozen=True)
class LessonSettings:
    """How one concept is learned. Every field's metadata holds `help` and its `min` and `max` or
    `options`; the defaults are the demo model's (see `defaults_for`).

    Raises InputError for values out of range.
    """

    steps: int = number(300, "optimiser steps", 1, 100_000)
    learning_rate: float = number(1e-3, "step size of the adapter's weights", 0.0, 1.0)
    token_learning_rate: float = number(1e-2, "step size of the token's vectors", 0.0, 1.0)
    norm_learning_rate: float = number(
        NORM_LEARNING_RATE,
        "spectral adapters: step size of the norms' weights and biases",
        0.0,
        1.0,
    )
    batch_size: int = number(3, "pictures of the concept per batch", 1, 256)
    prior_batch_size: int = number(2, "pictures of the plain class noun per batch", 1, 256)
    prior_count: int = number(
        32, "pictures of the class noun that the base model draws once; 0 learns without", 0, 10_000
    )
    prior_weight: float = number(1.0, "weight of the loss on the noun's pictures", 0.0, 100.0)
    earlier_prior_count: int = number(
        0, "pictures of each earlier concept's class noun among the noun's pictures", 0, 10_000
    )
    replay_batch_size: int = number(
        2, "remembered pictures per batch, in methods that replay", 1, 256
    )
    replay_weight: float = number(
        1.0, "weight of the remembered pictures as they are (α of TAME)", 0.0, 1e6
    )
    replay_teacher_weight: float = number(
        1.0, "weight of drawing them as before the lesson (γ of ECD)", 0.0, 1e6
    )
    retention_weight: float = number(
        1.0, "lwf: weight of answering under earlier prompts as before the lesson", 0.0, 1e6
    )
    ewc_weight: float = number(
        0.01,
        "ewc: pull to the weights that earlier concepts need (λ of a Fisher of mean 1)",
        0.0,
        1e9,
    )
    overlap_weight: float = number(
        1e5, "c_lora: weight of leaving alone what earlier lessons changed", 0.0, 1e12
    )
    accumulation: int = number(1, "batches whose gradients are averaged into one step", 1, 1024)
    precision: str = choice(
        "fp32", "number format of the forward pass; the adapter itself is fp32", PRECISIONS
    )
    gradient_checkpointing: bool = switch("much less memory for about a third more time")
    min_snr_gamma: float = number(5.0, "min-SNR weighting of the loss; 0 weights all alike", 0, 50)
    noise_offset: float = number(0.0, "share of noise that is equal over a whole picture", 0, 1)
    lr_schedule: str = choice("constant", "course of the step sizes after warm-up", LR_SCHEDULES)
    warmup: int = number(0, "steps over which the step sizes grow from zero", 0, 100_000)
    flip: bool = switch("also learn from mirrored pictures")
    crop: bool = switch("also learn from random crops of the pictures")
    token_count: int = number(1, "vectors that the token consists of", 1, 32)
    adapter: AdapterSpec = field(
        default=AdapterSpec(), metadata={"help": "kind, rank and layers of the adapter"}
    )
    seed: int = number(0, "same seed, pictures and settings: same result", 0, 2**64 - 1)
    orthogonality_weight: float = number(
        0.1, "cidm: weight of outputs orthogonal to those of earlier lessons (γ1)", 0.0, 1e6
    )
    shared_weight: float = number(
        1.0, "cidm: weight of reading prompts along directions that lessons share (γ2)", 0.0, 1e6
    )
    shared_rank: int = number(
        16, "cidm: how many directions lessons share in every layer", 1, MAX_RANK
    )
    layerwise_tokens: bool = switch("one set of the token's vectors per cross-attention layer")
    localized_words: bool = switch(
        "learn the look in the concept's own words alone, for pictures of several things"
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for headers and hashes."""
        return {**dataclasses.asdict(self), "adapter": self.adapter.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LessonSettings:
        """The inverse of `to_json`. Raises InputError for fields that are unknown here."""
        try:
            return cls(**{**value, "adapter": AdapterSpec.from_json(value["adapter"])})
        except (KeyError, TypeError) as error:
            raise InputError(f"Lesson settings cannot be used: {error}.") from error


_LARGE = LessonSettings(
    steps=1000,
    learning_rate=5e-4,
    token_learning_rate=1e-3,
    batch_size=1,
    prior_batch_size=1,
    replay_batch_size=1,
    prior_count=200,
    overlap_weight=1e8,
    accumulation=8,
    precision="bf16",
    min_snr_gamma=0.0,
)
_DEFAULTS = {
    "demo": LessonSettings(),
    "sd1": _LARGE,
    "sd2": _LARGE,
    "sdxl": dataclasses.replace(_LARGE, steps=800, learning_rate=1e-4, gradient_checkpointing=True),
}


def defaults_for(family: str) -> LessonSettings:
    """Settings for a family of base models.

    demo: chosen by measuring on the demo model. sd1, sd2: "Mining your own secrets" (ICLR 2025),
    section 4 (1000 steps of 8 accumulated samples, rank 16, 5e-4, 200 prior pictures), with the
    token's rate of CIDM (NeurIPS 2024). sdxl: CIDM's rates and steps. Raises InputError for other
    names.
    """
    if family not in _DEFAULTS:
        raise InputError(f"No lesson settings for {family!r}; known are {', '.join(_DEFAULTS)}.")
    return _DEFAULTS[family]


RATES = {"lora": 1.0, "vera": 10.0, "key_value": 0.1, "spectral": 3.0}
"""Step sizes that suit the kinds of adapters, relative to a LoRA's. VeRA's two vectors need larger
steps (Kopiczko et al. 2024 use about ten times LoRA's); full matrices smaller ones (Custom
Diffusion: 1e-5 times 4 pictures where LoRA has 5e-4). Shifts of singular values take L²DM's
1.5e-3 where LoRA has 5e-4 (SVDiff itself: 1e-3)."""


def for_adapter(settings: LessonSettings, adapter: AdapterSpec) -> LessonSettings:
    """`settings` with `adapter`, and a learning rate that suits its kind as theirs suited the kind
    before: the same for the same kind.
    """
    factor = RATES[adapter.kind] / RATES[settings.adapter.kind]
    rate = settings.learning_rate * factor
    return dataclasses.replace(settings, adapter=adapter, learning_rate=rate)
