"""ComfyUI's KSampler inside nodes of this pack: its widgets, and its own function."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io

from ..lifelong_core.errors import InputError


def sampler_inputs(algorithm: str = "The algorithm.") -> list[io.Input]:
    """KSampler's widgets, in its order; `algorithm`: the tooltip of the sampler's name."""
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            control_after_generate=True,
            tooltip="Makes the noise: same seed and settings, same picture.",
        ),
        io.Int.Input("steps", default=20, min=1, max=10_000, tooltip="Steps of denoising."),
        io.Float.Input(
            "cfg",
            default=7.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="How closely the picture follows the prompt. Too high harms it.",
        ),
        io.Combo.Input(
            "sampler_name",
            options=comfy.samplers.KSampler.SAMPLERS,
            tooltip=algorithm,
        ),
        io.Combo.Input(
            "scheduler",
            options=comfy.samplers.KSampler.SCHEDULERS,
            tooltip="How noise is removed over the steps.",
        ),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Less than 1 keeps some of the latent image.",
        ),
    ]


def check_latent(latent: dict[str, Any]) -> None:
    """Raise InputError for a latent image without a picture, or a noise mask without a size."""
    for name in ("samples", "noise_mask"):
        if name in latent and latent[name].numel() == 0:
            raise InputError(
                f"The latent image's {name} are empty, of shape {tuple(latent[name].shape)}: "
                "give at least one picture, and a mask with a size or none."
            )


def sample(*args: Any, **options: Any) -> dict[str, Any]:
    """What the stock KSampler does, by its own function."""
    # ComfyUI's top-level module; this package has the same name in its parent's.
    from nodes import common_ksampler  # type: ignore[attr-defined]

    latent: dict[str, Any] = common_ksampler(*args, **options)[0]
    return latent
