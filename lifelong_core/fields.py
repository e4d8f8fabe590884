"""Settings that explain and check themselves: fields of a dataclass with help and limits."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from .errors import InputError

PRECISIONS = ("fp32", "bf16", "fp16")


def number(default: Any, help: str, low: float, high: float) -> Any:
    """A number from `low` to `high`; whole if `default` is."""
    return dataclasses.field(default=default, metadata={"help": help, "min": low, "max": high})


def choice(default: str, help: str, options: tuple[str, ...]) -> Any:
    """One of `options`."""
    return dataclasses.field(default=default, metadata={"help": help, "options": options})


def switch(help: str) -> Any:
    """Off unless asked for."""
    return dataclasses.field(default=False, metadata={"help": help})


def check_fields(settings: Any) -> None:
    """Raise InputError unless every field of the dataclass `settings` keeps its limits."""
    for item in dataclasses.fields(settings):
        value, limits = getattr(settings, item.name), item.metadata
        if "options" in limits and value not in limits["options"]:
            raise InputError(
                f"{item.name} cannot be {value!r}; choose from {', '.join(limits['options'])}."
            )
        if "min" not in limits:
            continue
        whole = isinstance(item.default, int)
        wrong_type = isinstance(value, bool) or not isinstance(value, (int, float))
        if wrong_type or (whole and not isinstance(value, int)) or not math.isfinite(value):
            kind = "whole number" if whole else "number"
            raise InputError(f"{item.name} must be a {kind}, not {value!r}.")
        if not limits["min"] <= value <= limits["max"]:
            raise InputError(
                f"{item.name} is {value}, but must lie between {limits['min']:g} and "
                f"{limits['max']:g}."
            )
