"""`python -m lifelong_core setup`: everything that the demo needs, and nothing started."""

from __future__ import annotations

import argparse

from .comfyui import locate_or_fetch
from .console import say
from .environment import enter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(_arguments: argparse.Namespace) -> int:
    """Make and fill the environment and find or fetch ComfyUI."""
    code = enter(["setup"], "demo")
    if code is not None:
        return code
    say(f"Ready. ComfyUI is in {locate_or_fetch().path}.")
    return 0
