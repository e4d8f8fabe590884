"""`python -m lifelong_core demo`: from a fresh clone to pictures of a concept just learned."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from torch import Tensor

    from ..world.streams import Personal

WORKFLOW = WORKFLOWS / "learn_concept.json"
STREAM_SEED = 2
PHOTOS = 5
STYLE = "style"
PHOTO = "demo_photo.png"
MASKED = "demo_masked.png"
MARGIN = 8
"""Pixels between an object and the edge of the mask painted over it: one latent of the model."""


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
    """What the workflows load. Files that are there stay.

    `folder/demo_<noun>/photo_<n>.png`: photos of the five toys of one stream of the demo world,
    each with its caption in `photo_<n>.txt`; `folder/demo_style`: drawings in one style, likewise.
    One folder per concept, as Load Concept Photos reads them; stock folder loaders read the photos.
    `folder/demo_photo.png`: a plain red dog; `folder/demo_masked.png`: the same with a mask over
    the dog, as ComfyUI's mask editor saves it.
    """
    from ..world.streams import PersonalStyle, toys5, toys10

    for toy in toys5(STREAM_SEED):
        _write_concept(folder / f"demo_{toy.noun}", replace(toy, token=f"my_{toy.noun}"))
    style = next(one for one in toys10(STREAM_SEED) if isinstance(one, PersonalStyle))
    _write_concept(folder / f"demo_{STYLE}", replace(style, token=f"my_{STYLE}"))
    _write_plain_photo(folder)


def _write_concept(folder: Path, concept: Personal) -> None:
    """Photos and captions. What stands behind a toy, or what a style shows, is told in the
    captions, so that no token learns it."""
    from ..files import write_text

    paths = [folder / f"photo_{number}.png" for number in range(1, PHOTOS + 1)]
    if not all(path.is_file() for path in paths):
        for path, photo in zip(paths, concept.photos(PHOTOS), strict=True):
            _write_png(path, photo)
    for path, caption in zip(paths, concept.captions(PHOTOS), strict=True):
        if not path.with_suffix(".txt").is_file():
            write_text(path.with_suffix(".txt"), caption)


def _write_plain_photo(folder: Path) -> None:
    """A photo to begin from, and the same with an alpha of 0 in a box around its object."""
    import torch

    from ..world.dice import Dice
    from ..world.looks import Look
    from ..world.scenes import Scene, Thing, placements, render

    if (folder / PHOTO).is_file() and (folder / MASKED).is_file():
        return
    thing = Thing("dog", Look("red"), placements(1, Dice(STREAM_SEED, "plain photo"))[0])
    drawn = render(Scene("beach", (thing,), seed=STREAM_SEED))
    _write_png(folder / PHOTO, drawn.image)
    rows, columns = drawn.masks[0].nonzero().T
    alpha = torch.ones(1, *drawn.image.shape[1:])
    top, left = (max(int(edge.min()) - MARGIN, 0) for edge in (rows, columns))
    alpha[:, top : int(rows.max()) + MARGIN + 1, left : int(columns.max()) + MARGIN + 1] = 0
    _write_png(folder / MASKED, torch.cat([drawn.image, alpha]))


def _write_png(path: Path, photo: Tensor) -> None:
    """A tensor [3, H, W], or [4, H, W] with alpha, in [0, 1] as a picture file."""
    from PIL import Image

    from ..files import atomic_write

    pixels = (photo.permute(1, 2, 0) * 255).round().byte().numpy()
    atomic_write(path, lambda temporary: Image.fromarray(pixels).save(temporary, format="PNG"))
