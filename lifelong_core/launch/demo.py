"""`python -m lifelong_core demo`: from a fresh clone to pictures of a concept just learned."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

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
STREAM_SEED = 2
PHOTOS = 5


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
    prepare_base(base)
    prepare_demo_inputs(base / "input")


def prepare_demo_inputs(folder: Path) -> None:
    """Photos of the five toys of one stream of the demo world: `folder/demo_<noun>/photo_<n>.png`,
    each with its caption in `photo_<n>.txt`.

    One folder per toy, as Load Concept Photos reads them; stock folder loaders read the photos.
    Files that are there stay.
    """
    from ..files import write_text
    from ..world.streams import toys5

    for toy in toys5(STREAM_SEED):
        names = (f"demo_{toy.noun}/photo_{number}.png" for number in range(1, PHOTOS + 1))
        paths = [folder / name for name in names]
        if not all(path.is_file() for path in paths):
            for path, photo in zip(paths, toy.photos(PHOTOS), strict=True):
                _write_png(path, photo)
        # The workflows' tokens. What stands behind a toy is told, so that no token learns it.
        captions = replace(toy, token=f"my_{toy.noun}").captions(PHOTOS)
        for path, caption in zip(paths, captions, strict=True):
            if not path.with_suffix(".txt").is_file():
                write_text(path.with_suffix(".txt"), caption)


def _write_png(path: Path, photo: Any) -> None:
    """A tensor [3, H, W] in [0, 1] as a picture file."""
    from PIL import Image

    from ..files import atomic_write

    pixels = (photo.permute(1, 2, 0) * 255).round().byte().numpy()
    atomic_write(path, lambda temporary: Image.fromarray(pixels).save(temporary, format="PNG"))
