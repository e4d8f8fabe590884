"""Put this pack into a base directory of ComfyUI's, as a user would into custom_nodes."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from .paths import DEMO_WEIGHTS, ROOT

# Letters only: a dot in the folder's name breaks the help pages in the web page.
FOLDER = "lifelong"
CHECKPOINT = "lifelong_demo.safetensors"
BASE_FOLDERS = (
    "custom_nodes",
    "input",
    "output",
    "temp",
    "user",
    "models/checkpoints",
    "models/loras",
    "models/embeddings",
)
NOT_COPIED = (".*", "__pycache__", "tests", "benchmarks", "demo_output", "build", "dist")


def prepare_base(base: Path) -> Path:
    """Make the folders of a base directory and put pack and demo checkpoint there. Repeatable."""
    for name in BASE_FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    link_folder(ROOT, base / "custom_nodes" / FOLDER)
    if DEMO_WEIGHTS.is_file():
        place_file(DEMO_WEIGHTS, base / "models" / "checkpoints" / CHECKPOINT)
    return base


def link_folder(source: Path, target: Path) -> None:
    """Make `target` show the pack in `source`: a link where the system allows, else a copy."""
    remove_link(target)
    try:
        target.symlink_to(source, target_is_directory=True)
        return
    except OSError:
        if sys.platform == "win32":
            import _winapi

            try:
                # A junction needs no right that a normal Windows user lacks.
                _winapi.CreateJunction(str(source), str(target))
                return
            except OSError:
                pass
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*NOT_COPIED))


def remove_link(target: Path) -> None:
    """Remove what `link_folder` made, and never what a link points at."""
    if target.is_symlink():
        target.unlink()
    elif target.is_dir():
        try:
            target.rmdir()  # A junction, or an empty folder.
        except OSError:
            shutil.rmtree(target)


def place_file(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`: a hard link on the same disk, else a copy."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
