"""Measurements that are kept until all of a benchmark are there: a command goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lifelong_core.files import read_json, write_json
from lifelong_core.launch.console import say

Measured = TypeVar("Measured")
"""Plain JSON values."""


def kept_json(folder: Path, name: str, measure: Callable[[], Measured]) -> Measured:
    """What `measure` gives, from `folder` where it was measured before."""
    path = folder / f"{name}.json"
    if not path.exists():
        write_json(path, measure())
        say(f"Measured: {name}.")
    found: Measured = read_json(path)
    return found
