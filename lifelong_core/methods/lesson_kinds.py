"""The methods among which somebody who teaches a concept chooses."""

from __future__ import annotations

LESSON_METHODS = (
    "lora",
    "ewc",
    "l2dm",
    "l2dm_lora",
    "lwf",
    "c_lora",
    "lora_merge",
    "dreambooth_lora",
    "custom_diffusion",
    "custom_diffusion_ewc",
    "svdiff",
    "textual_inversion",
    "orthogonal_adaptation",
    "null_space",
    "cidm",
)
"""Each kind of lesson once. The others in the table have the same lessons: with phases behind them,
drawn in another way, or, as ablations, without a part."""
