"""`python -m lifelong_core ui`: ComfyUI with this pack and the demo model until Ctrl-C."""

from __future__ import annotations

import argparse
import time

from ..errors import SetupError
from .comfyui import locate_or_fetch
from .console import say
from .demo import prepare_demo
from .environment import enter
from .pack import FOLDER
from .paths import BASE, WORKFLOWS
from .server import ComfyServer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(_arguments: argparse.Namespace) -> int:
    """Start the server, say where its page is, and wait."""
    code = enter(["ui"], "demo")
    if code is not None:
        return code
    comfyui = locate_or_fetch()
    prepare_demo(BASE)
    say("Starting ComfyUI.")
    with ComfyServer(comfyui, BASE) as server:
        names = ", ".join(sorted(path.stem for path in WORKFLOWS.glob("*.json")))
        say(f"\nComfyUI runs. Open {server.base_url} in a web browser.")
        say("The workflows are in its menu under Workflow > Browse Templates, in the list on the")
        say(f'left under Extensions > "{FOLDER}": {names}.')
        say(f"Files go to {BASE}. Press Ctrl-C to stop.")
        try:
            while server.running():
                time.sleep(0.5)
        except KeyboardInterrupt:
            say("\nStopping ComfyUI.")
            return 0
        raise SetupError(f"ComfyUI ended by itself; see {server.log_path}.")
