"""`python -m lifelong_core demo-files FOLDER`: what the shipped workflows load, into a ComfyUI."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import SetupError
from ..launch.console import say
from ..launch.pack import CHECKPOINT, place_file
from ..launch.paths import DEMO_WEIGHTS
from .demo_inputs import prepare_demo_inputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folder."""
    parser.add_argument("folder", type=Path, help="of a ComfyUI: it holds `models` and `input`")


def run(arguments: argparse.Namespace) -> int:
    """Put the demo model and the pictures there; pictures that are there stay."""
    checkpoints = arguments.folder / "models" / "checkpoints"
    if not checkpoints.is_dir():
        raise SetupError(
            f"{arguments.folder} is no folder of a ComfyUI: it has no models/checkpoints."
        )
    place_file(DEMO_WEIGHTS, checkpoints / CHECKPOINT)
    prepare_demo_inputs(arguments.folder / "input")
    say(f"{CHECKPOINT} is in {checkpoints}, demo pictures are in {arguments.folder / 'input'}.")
    return 0
