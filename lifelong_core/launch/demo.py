"""`python -m lifelong_core demo`: from a fresh clone to pictures of a concept just learned."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..errors import SetupError
from .collect import collect, tell
from .comfyui import locate_or_fetch
from .console import say
from .convert import to_api
from .environment import enter
from .pack import prepare_base
from .paths import BASE, DEMO_OUTPUT, DEMO_WEIGHTS, WORKFLOWS
from .progress import ProgressLines
from .server import ComfyServer

WORKFLOW = WORKFLOWS / "learn_concept.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(_arguments: argparse.Namespace) -> int:
    """Set up, run the workflow in a real ComfyUI, copy what it made and say what that is."""
    code = enter(["demo"], "demo")
    if code is not None:
        return code
    comfyui = locate_or_fetch()
    prepare_demo(BASE)
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    say("Starting ComfyUI.")
    with ComfyServer(comfyui, BASE) as server:
        prompt = to_api(workflow, server.object_info())
        for node in prompt.values():
            if node["class_type"] == "ExportLifelongLora":
                # The demo of an earlier version may have left another embedding of this name.
                node["inputs"]["replace_embeddings"] = True
        say(f"Running {WORKFLOW.name} on {'the CPU' if server.cpu else 'the GPU'}:")
        result = server.run(prompt, timeout=3600, on_event=ProgressLines(prompt))
        made = collect(server, prompt, result, DEMO_OUTPUT)
    tell(made, DEMO_OUTPUT)
    say("To try it by hand in ComfyUI's web page: make ui (python -m lifelong_core ui).")
    return 0


def prepare_demo(base: Path) -> None:
    """A base directory with the pack, the demo model and the concepts' pictures."""
    if not DEMO_WEIGHTS.is_file():
        raise SetupError(f"The demo model is missing: {DEMO_WEIGHTS}. Clone the repository again.")
    from ..world.demo_inputs import prepare_demo_inputs

    prepare_base(base)
    prepare_demo_inputs(base / "input")
