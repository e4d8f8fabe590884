"""Widgets that several nodes share. Only their tooltips differ."""

from __future__ import annotations

from comfy_api.latest import io

from ..lifelong_core.fields import PRECISIONS


def seed_input(tooltip: str) -> io.Input:
    """A seed that stays as it is from run to run, so that results are found again."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=io.ControlAfterGenerate.fixed,
        tooltip=tooltip,
    )


def precision_input(tooltip: str) -> io.Input:
    """The number format of the model's passes."""
    return io.Combo.Input(
        "precision",
        optional=True,
        advanced=True,
        options=["default", *PRECISIONS],
        default="default",
        tooltip=tooltip,
    )
