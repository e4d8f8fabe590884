"""Use a torch that is installed already: it is large, and perhaps built for the user's GPU."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .comfyui import locate
from .console import capture

OLDEST_PYTHON = (3, 10)
TORCH_NAMES = ("torch", "torchvision", "torchaudio")

_INSPECT = """
import json, sys, sysconfig
from importlib import metadata
versions = {name: metadata.version(name) for name in sys.argv[1:]}
folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
folders += [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
print(json.dumps([sys.version_info[:2], list(dict.fromkeys(folders)), versions]))
"""


@dataclass(frozen=True)
class Borrowed:
    """Another Python, its package folders and its versions of torch and companions."""

    python: Path
    folders: tuple[str, ...]
    versions: dict[str, str]


def find_torch_elsewhere() -> Borrowed | None:
    """The first Python with torch, torchvision and torchaudio: the user's ComfyUI's, or this one.

    Nothing is ever installed into it; `.venv` only looks into its folders.
    """
    return next(filter(None, map(_inspect, _candidates())), None)


def _candidates() -> Iterator[Path]:
    comfyui = locate()
    if comfyui is not None and comfyui.own:
        inside = "Scripts/python.exe" if os.name == "nt" else "bin/python"
        for name in (".venv", "venv"):
            yield comfyui.path / name / inside
        yield comfyui.path.parent / "python_embeded" / "python.exe"
    yield Path(sys.executable)


def _inspect(python: Path) -> Borrowed | None:
    if not python.is_file():
        return None
    code, output = capture([python, "-c", _INSPECT, *TORCH_NAMES])
    if code != 0:
        return None
    version, folders, versions = json.loads(output.strip().splitlines()[-1])
    if tuple(version) < OLDEST_PYTHON:
        return None
    return Borrowed(python, tuple(folders), versions)
