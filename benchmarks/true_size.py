"""The shipped workflow on a base model of true size with random weights, in a real ComfyUI.

python -m benchmarks.true_size --family sd15|sdxl: learns for 2 steps, samples 1 step, both at 256
px on the CPU, then makes the same picture with the stock LoRA loader from the written files.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks.graphs import at_true_size, with_stock_loader
from benchmarks.machine import GIB
from benchmarks.meta_keys import load_on_meta_device
from benchmarks.record import Recorder
from benchmarks.watch import MemoryWatch, Timeline
from lifelong_core.backbone import random_backbone, save_single_file
from lifelong_core.files import load_tensors
from lifelong_core.launch import comfyui
from lifelong_core.launch.console import ended_by_signals, say
from lifelong_core.launch.convert import to_api
from lifelong_core.launch.demo import WORKFLOW
from lifelong_core.launch.pack import link_folder, place_file, prepare_base
from lifelong_core.launch.paths import CACHE
from lifelong_core.launch.progress import ProgressLines
from lifelong_core.launch.server import ComfyServer
from lifelong_core.state import load_state
from lifelong_core.world.demo_inputs import prepare_demo_inputs

FAMILIES = {"sd15": "sd1", "sdxl": "sdxl"}
NEEDED_GIB = {"sd15": 12, "sdxl": 36}
"""ComfyUI's weights and the copy that is trained, both in 32 bits, and what lies between layers."""

FOLDER = CACHE / "true_size"
PROBE = Path(__file__).with_name("comfyui_probe")
LESSON = {"steps": 2, "resolution": 256, "prior_pictures": 1, "accumulation": 1}
TIMEOUT = 4 * 3600.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.true_size", description=__doc__)
    parser.add_argument("--family", choices=list(FAMILIES), default="sd15")
    parser.add_argument("--keep", action="store_true", help="leave the model's file in .cache")
    arguments = parser.parse_args()
    with ended_by_signals():
        measure(arguments.family, keep=arguments.keep)


def measure(name: str, *, keep: bool) -> None:
    """Record `true_size_<name>.json`."""
    free = psutil.virtual_memory().available / GIB
    fits = free >= NEEDED_GIB[name]
    workflow = {"workflow": WORKFLOW.name, "weights": "random", **LESSON, "sampling_steps": 1}
    recorder = Recorder(
        f"true_size_{name}",
        f"python -m benchmarks.true_size --family {name}",
        workflow if fits else {"weights": "none: torch's meta device"},
    )
    if fits:
        summary, runs = run_workflow(name, keep=keep)
    else:
        say(f"{NEEDED_GIB[name]} GiB of memory are needed, {free:.0f} are free:")
        say("only the layers' names and sizes are checked, without their weights.")
        summary, runs = load_on_meta_device(FAMILIES[name])
    say(f"Recorded {recorder.write(summary, runs).name}: {json.dumps(summary)}")


def run_workflow(name: str, *, keep: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Learn, sample, and sample again from the files. Returns the summary and both runs."""
    checkpoint = FOLDER / f"random_{name}.safetensors"
    base = FOLDER / "base"
    shutil.rmtree(base, ignore_errors=True)
    try:
        prepare_base(base)
        prepare_demo_inputs(base / "input")
        link_folder(PROBE, base / "custom_nodes" / PROBE.name)
        build_checkpoint(FAMILIES[name], checkpoint)
        place_file(checkpoint, base / "models" / "checkpoints" / checkpoint.name)
        with ComfyServer(comfyui.require(), base, cpu=True) as server:
            workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
            prompt = to_api(workflow, server.object_info())
            learn = at_true_size(prompt, checkpoint.name, LESSON)
            return compare(server, learn)
    finally:
        shutil.rmtree(base)
        if not keep:
            checkpoint.unlink(missing_ok=True)


def build_checkpoint(family: str, path: Path) -> None:
    """A single-file checkpoint with random weights, unless it is there already."""
    if not path.is_file():
        say(f"Making a {family} model with random weights.")
        save_single_file(random_backbone(family, dtype=torch.float16), path)


def compare(
    server: ComfyServer, learn: Mapping[str, Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run `learn`, then the same with the stock loader in the lesson's place."""
    first, learned = run(server, learn, "learn and sample")
    (lora,) = server.folder("models/loras").glob("*.safetensors")
    (state,) = server.folder("output/lifelong").glob("*.safetensors")
    lesson = load_state(state).records[-1]
    first["lesson"] = dict(lesson.settings)
    second, loaded = run(server, with_stock_loader(learn, lora.name), "load and sample")
    log = server.logs()
    summary = {
        "lora_layers_written": layers_in(lora),
        "lora_layers_loaded": second.pop("patched_layers"),
        "lora_keys_not_loaded": log.count("lora key not loaded") + log.count("NOT LOADED"),
        "seconds_per_step": round(lesson.metrics["seconds"] / lesson.metrics["steps"], 2),
        "peak_memory_gib": first["peak_memory_gib"],
        "largest_difference_of_255": max(
            largest_difference(learned[node], picture) for node, picture in loaded.items()
        ),
    }
    return summary, [first, second]


def run(
    server: ComfyServer, prompt: Mapping[str, Any], what: str
) -> tuple[dict[str, Any], dict[str, Path]]:
    """One workflow: its row of the result, and node -> the picture that it saved."""
    say(f"Running: {what}.")
    (process,) = psutil.Process().children()
    timeline, lines = Timeline(prompt, process), ProgressLines(prompt)

    def on_event(event: dict[str, Any]) -> None:
        timeline(event)
        lines(event)

    with MemoryWatch(process) as memory:
        result = server.run(prompt, TIMEOUT, on_event)
    row = {"run": what, "peak_memory_gib": memory.peak_gib(), "nodes": timeline.table(memory)}
    for node, output in result.outputs.items():
        if prompt[node]["class_type"] == "CountPatchedLayers":
            row["patched_layers"] = int(output["text"][0])
    saved = {
        node: server.base / picture["type"] / picture["subfolder"] / picture["filename"]
        for node, output in result.outputs.items()
        for picture in output.get("images", ())
        if prompt[node]["class_type"] == "SaveImage"
    }
    return row, saved


def layers_in(lora: Path) -> int:
    """Layers of a LoRA file in kohya's names."""
    return sum(key.endswith(".lora_down.weight") for key in load_tensors(lora)[0])


def largest_difference(one: Path, other: Path) -> int:
    """Between two pictures, over all values, in steps of 255."""
    with Image.open(one) as left, Image.open(other) as right:
        difference = np.asarray(left, np.int16) - np.asarray(right, np.int16)
    return int(np.abs(difference).max())


if __name__ == "__main__":
    main()
