"""Bring together what a run made, and say in plain words what it is."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .client import RunResult
from .console import say
from .server import ComfyServer

Made = list[tuple[str, list[Path]]]

KINDS = (
    ("models/loras", "*.safetensors", "the LoRA, for Load LoRA and other programs"),
    ("models/loras", "*.png", "the LoRA's preview"),
    ("models/embeddings", "*.safetensors", "the concept's word (models/embeddings)"),
    ("output/lifelong", "*.safetensors", "all that was learned, to go on teaching from"),
)


def collect(
    server: ComfyServer, workflow: Mapping[str, Any], result: RunResult, target: Path
) -> Made:
    """Copy the run's pictures, and the files that its nodes name in their reports, to `target`.

    `workflow` is the one that ran, in API form. Names are the same in each run, so that a second
    one replaces the pictures of the first. Returns what is in each group of copies.
    """
    target.mkdir(parents=True, exist_ok=True)
    made: Made = []
    for node in result.outputs:
        pictures = server.files(result, node)
        if pictures and workflow[node]["class_type"] != "PreviewImage":
            names = _names(pictures, workflow[node]["_meta"]["title"])
            made.append((_describe(workflow, node), _copy(pictures, names, target)))
    named = {word for text in reports(result) for word in text.split()}
    for folder, pattern, what in KINDS:
        paths = sorted(path for path in server.folder(folder).glob(pattern) if path.name in named)
        if paths:
            made.append((what, _copy(paths, [path.name for path in paths], target)))
    return made


def reports(result: RunResult) -> list[str]:
    """The texts that nodes show."""
    return [text for output in result.outputs.values() for text in output.get("text", ())]


def tell(made: Made, folder: Path) -> None:
    """Say what lies in `folder`."""
    say(f"\nDone. In {folder}:")
    for what, paths in made:
        names = [path.name for path in paths]
        say(f"  {names[0]}{f' to {names[-1]}' if len(names) > 1 else ''}: {what}")


def prompt_of(workflow: Mapping[str, Any], node: str) -> str | None:
    """The prompt behind a node's picture: the first text up its links, by way of "positive"."""
    entry = workflow[node]
    if isinstance(entry["inputs"].get("text"), str):
        return str(entry["inputs"]["text"])
    inputs = entry["inputs"]
    links = [inputs["positive"]] if "positive" in inputs else inputs.values()
    origins = [value[0] for value in links if isinstance(value, list)]
    found = (prompt_of(workflow, origin) for origin in origins)
    return next(filter(None, found), None)


def _describe(workflow: Mapping[str, Any], node: str) -> str:
    prompt = prompt_of(workflow, node)
    return f'"{prompt}"' if prompt else f"shown by {workflow[node]['_meta']['title']}"


def _names(pictures: list[Path], title: str) -> list[str]:
    """The file's own name with a number of this run, or the node's title where it is random."""
    stem = re.sub(r"_\d{5}_?$", "", pictures[0].stem)
    if stem.startswith("ComfyUI_temp"):
        stem = re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")
    return [f"{stem}_{number}{path.suffix}" for number, path in enumerate(pictures, start=1)]


def _copy(paths: list[Path], names: list[str], target: Path) -> list[Path]:
    pairs = zip(paths, names, strict=True)
    return [Path(shutil.copyfile(path, target / name)) for path, name in pairs]
