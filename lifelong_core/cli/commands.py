"""The table of commands.

Each entry names a module with `add_arguments(parser)` and `run(arguments) -> int`. The module is
imported only when its command is chosen, so those of `launch` start on a bare Python before
anything is installed. The others may import anything on their first line.
"""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """A command: the module that runs it (relative to `lifelong_core`) and its line of help."""

    module: str
    help: str


COMMANDS: dict[str, Command] = {
    "setup": Command(".launch.setup", "install what the demo needs into .venv and .cache"),
    "demo": Command(".launch.demo", "set up and teach a concept in a real ComfyUI"),
    "ui": Command(".launch.ui", "set up and open ComfyUI with this pack until Ctrl-C"),
    "demo-files": Command(
        ".world.demo_files", "put the demo model and its pictures into a ComfyUI of yours"
    ),
    "test": Command(".launch.test", "set up and run lint and all tests"),
    "lint": Command(".launch.lint", "set up and run ruff and mypy"),
    "bench": Command(".evaluation.command", "measure methods on streams of concepts, and report"),
    "world": Command(".world.command", "make the demo model, and measure it"),
}
