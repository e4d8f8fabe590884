"""From what the node's widgets and links hold to the library's lesson input and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..lifelong_core.adapters.spec import AdapterSpec
from ..lifelong_core.concepts import ConceptTask, make_task
from ..lifelong_core.errors import InputError
from ..lifelong_core.images import from_batch
from ..lifelong_core.lesson import LessonSettings, defaults_for, for_adapter
from ..lifelong_core.methods import METHODS
from ..lifelong_core.state import LifelongState

_CROSS = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
LAYERS: dict[str, tuple[str, ...]] = {
    "default": (),
    "cross-attention key and value": ("attn2.to_k", "attn2.to_v"),
    "cross-attention": _CROSS,
    "cross- and self-attention": (*(name.replace("attn2", "attn1") for name in _CROSS), *_CROSS),
}

DEFAULT_METHOD = "ewc"
"""With Consolidate Lesson behind it as it comes, the combination with one LoRA that keeps the most
of what lone LoRAs gain (`benchmarks.combinations`)."""


def usual_settings(family: str, state: LifelongState | None, method: str) -> LessonSettings:
    """The family's settings for the state's adapter, with what `method` fixes."""
    usual = defaults_for(family)
    if state is not None:
        usual = for_adapter(usual, state.adapter_spec)
    return METHODS[method].settings(usual)


def only(name: str, values: Sequence[Any]) -> Any:
    """The single value of an input that came as a list. Raises InputError for several."""
    if len(values) != 1:
        raise InputError(
            f"{name} got a list of {len(values)} values. One lesson takes one of each; only images "
            "and captions may be lists."
        )
    return values[0]


def lesson_task(
    token: str,
    noun: str,
    images: Sequence[Tensor],
    captions: Sequence[str] | None,
    *,
    size: int,
) -> ConceptTask:
    """The lesson's input from IMAGE batches [B, H, W, C] and the captions widget or link."""
    names = ["images"] if len(images) == 1 else [f"images[{n}]" for n in range(len(images))]
    pictures = [
        picture
        for name, batch in zip(names, images, strict=True)
        for picture in from_batch(batch.clone(), name)
    ]
    return make_task(token, noun, pictures, split_captions(captions), size=size)


def split_captions(captions: Sequence[str] | None) -> list[str] | None:
    """One caption per line of the widget, or one per item of a linked list; None when all empty."""
    if not captions or not any(text and text.strip() for text in captions):
        return None
    lines = captions[0].splitlines() if len(captions) == 1 else captions
    stripped = [" ".join(line.split()) for line in lines]
    return [line for line in stripped if line] if len(captions) == 1 else stripped


def lesson_settings(
    defaults: LessonSettings,
    *,
    seed: int = 0,
    steps: int = 0,
    learning_rate: float = 0.0,
    rank: int = 0,
    token_learning_rate: float = 0.0,
    batch_size: int = 0,
    accumulation: int = 0,
    prior_pictures: int = -1,
    layers: str = "default",
    train_text_encoder: bool = False,
    mirror: bool = False,
    precision: str = "default",
    gradient_checkpointing: bool = False,
    crop: bool = False,
    lr_schedule: str = "default",
    min_snr_gamma: float = -1.0,
    noise_offset: float = 0.0,
    ewc_weight: float = -1.0,
    layerwise_tokens: bool = False,
    localized_words: bool = False,
    token_count: int = 0,
) -> LessonSettings:
    """`defaults`, changed by every widget that is not at its own default.

    Workflows in API form may leave out widgets; then their defaults count.
    """
    chosen: dict[str, Any] = {
        "steps": steps,
        "learning_rate": learning_rate,
        "token_learning_rate": token_learning_rate,
        "batch_size": batch_size,
        "accumulation": accumulation,
        "flip": mirror,
        "crop": crop,
        "noise_offset": noise_offset,
        "gradient_checkpointing": gradient_checkpointing,
        "precision": precision,
        "lr_schedule": lr_schedule,
        "layerwise_tokens": layerwise_tokens,
        "localized_words": localized_words,
        "token_count": token_count,
    }
    changed = {name: value for name, value in chosen.items() if value and value != "default"}
    if prior_pictures >= 0:
        changed["prior_count"] = prior_pictures
    if min_snr_gamma >= 0:
        changed["min_snr_gamma"] = min_snr_gamma
    if ewc_weight >= 0:
        changed["ewc_weight"] = ewc_weight
    adapter = _adapter(defaults.adapter, rank, layers, train_text_encoder)
    return replace(defaults, adapter=adapter, seed=seed, **changed)


def _adapter(usual: AdapterSpec, rank: int, layers: str, text_encoder: bool) -> AdapterSpec:
    wanted = usual
    if rank:
        wanted = replace(wanted, rank=rank, alpha=float(rank))
    if LAYERS[layers]:
        wanted = replace(wanted, targets=LAYERS[layers])
    return replace(wanted, text_encoder=True) if text_encoder else wanted
