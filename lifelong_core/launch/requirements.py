"""What has to be installed, read from pyproject.toml and ComfyUI's requirements.txt."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from .comfyui import ComfyUI
from .paths import ROOT

GROUPS = ("demo", "test")

# The set that the fetched ComfyUI is tested with. pyproject.toml stays wide.
TESTED_TORCH = {"torch": "2.12.1", "torchvision": "0.27.1", "torchaudio": "2.11.0"}


@dataclass(frozen=True)
class Requirements:
    """`lines` in requirements.txt form and `pins` that the resolver must keep."""

    lines: tuple[str, ...]
    pins: tuple[str, ...]

    def stamp(self) -> str:
        """A hash that changes when anything here or the Python version changes."""
        known = [sys.version_info[:2], self.lines, self.pins]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def requirements_for(
    group: str, comfyui: ComfyUI, have_torch: Mapping[str, str] | None = None
) -> Requirements:
    """The requirements of "demo" (library and ComfyUI) or "test" (those and the extra `dev`).

    `have_torch`: versions of torch and its companions that are there already and must stay. Else
    the tested set is pinned for the fetched ComfyUI; the user's own ComfyUI decides for itself.
    """
    project = _pyproject()["project"]
    lines = [*_comfyui_lines(comfyui), *project["dependencies"]]
    if group == "test":
        lines += project["optional-dependencies"]["dev"]
    fixed = have_torch or ({} if comfyui.own else TESTED_TORCH)
    return Requirements(tuple(lines), tuple(f"{name}=={fixed[name]}" for name in sorted(fixed)))


def _comfyui_lines(comfyui: ComfyUI) -> Sequence[str]:
    text = comfyui.requirements.read_text(encoding="utf-8")
    stripped = (line.split("#")[0].strip() for line in text.splitlines())
    return [line for line in stripped if line]


def _pyproject() -> dict[str, Any]:
    """pyproject.toml as a dictionary. Python 3.10 has no tomllib; pip brings the same reader."""
    name = "tomllib" if sys.version_info >= (3, 11) else "pip._vendor.tomli"
    content: dict[str, Any] = import_module(name).loads(
        (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    )
    return content
