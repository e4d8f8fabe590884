"""The shipped workflow of three toys, and the LoRA that it exports, drawn by stock nodes alone.

python -m benchmarks.shared_lora: runs `lifelong_ewc_dc` as it is shipped in a real ComfyUI, then
draws its prompts again with nothing but ComfyUI's own nodes: with the exported LoRA and embeddings,
and with the checkpoint alone, given the plain nouns. Similarity to 20 renders of each toy that no
lesson saw (IA), and the largest difference to the workflow's own pictures.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.graphs import Graph, new_node, only_node
from benchmarks.learn_concept import PHOTOS, UNSEEN, clip_hash, contact_sheet, gains
from benchmarks.record import Recorder
from lifelong_core.evaluation.features import clip_space
from lifelong_core.images import load_images
from lifelong_core.launch import comfyui
from lifelong_core.launch.client import RunResult
from lifelong_core.launch.console import ended_by_signals, say
from lifelong_core.launch.convert import to_api
from lifelong_core.launch.pack import prepare_base
from lifelong_core.launch.paths import CACHE, WORKFLOWS
from lifelong_core.launch.progress import ProgressLines
from lifelong_core.launch.server import ComfyServer
from lifelong_core.state import LifelongState, load_state
from lifelong_core.world.clip import load_world_clip
from lifelong_core.world.demo_inputs import STREAM_SEED, prepare_demo_inputs
from lifelong_core.world.streams import toys5

WORKFLOW = WORKFLOWS / "lifelong_ewc_dc.json"
STOCK = {
    "CheckpointLoaderSimple",
    "CLIPTextEncode",
    "EmptyLatentImage",
    "KSampler",
    "SaveImage",
    "VAEDecode",
}
OUTPUTS = {"model": 0, "clip": 1}
"""Of the checkpoint loader and of the LoRA loader alike."""
EMBEDDING = re.compile(r"embedding:\S+ ")
TIMEOUT = 2 * 3600.0


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.shared_lora", description=__doc__)
    with ended_by_signals():
        measure(CACHE / "shared_lora")


def measure(base: Path) -> None:
    """Record `shared_lora.json` and its sheet of pictures. `base` is ComfyUI's folder meanwhile;
    lessons that a run which was stopped has left there are not learned again."""
    settings = {"workflow": WORKFLOW.name, "unseen_renders": UNSEEN, "world_clip": clip_hash()}
    recorder = Recorder("shared_lora", "python -m benchmarks.shared_lora", settings)
    prepare_base(base)
    prepare_demo_inputs(base / "input")
    with ComfyServer(comfyui.require(), base) as server:
        workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
        graph = to_api(workflow, server.object_info())
        taught = drawn(server, graph, "three lessons, each consolidated")
        (lora,) = server.folder("models/loras").glob("*.safetensors")
        (saved,) = server.folder("output/lifelong").glob("*.safetensors")
        state = load_state(saved)
        shared = drawn(server, stock_graph(graph, lora.name), "the exported LoRA")
        plain = drawn(server, stock_graph(graph, None), "the checkpoint alone")
    rows, sheet = compared(state, taught, shared, plain)
    summary = {
        "ia_gain": round(sum(row["ia_gain"] for row in rows) / len(rows), 4),
        "largest_difference_of_255": max(row["largest_difference_of_255"] for row in rows),
        "weights": state.base_fingerprint,
    }
    recorder.write(summary, rows, {"pictures": contact_sheet(sheet)})
    shutil.rmtree(base)
    say(json.dumps(summary))


def compared(
    state: LifelongState,
    taught: Mapping[str, Tensor],
    shared: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
) -> tuple[list[dict[str, Any]], list[list[Tensor]]]:
    """Per concept, in the order of the lessons and of the nodes that save its pictures: the row of
    the result, and photos, base pictures and the exported LoRA's for the sheet."""
    rows, sheet = [], []
    toys = {toy.noun: toy for toy in toys5(STREAM_SEED)}
    space = clip_space(load_world_clip())
    for record, node in zip(state.records, shared, strict=True):
        toy = toys[record.concept.noun]
        rows.append(
            {
                "concept": record.concept.token,
                **gains("ia", space, shared[node], plain[node], toy.photos(UNSEEN, unseen=True)),
                "largest_difference_of_255": steps_of_255(shared[node], taught[node]),
                "lesson_seconds": round(float(record.metrics["seconds"]), 1),
            }
        )
        say(json.dumps(rows[-1]))
        sheet.append([toy.photos(PHOTOS), plain[node], shared[node]])
    return rows, sheet


def stock_graph(graph: Mapping[str, Any], lora: str | None) -> Graph:
    """What the workflow draws, by stock nodes alone: with the LoRA, or without one and with the
    plain nouns in the prompts. MODEL and CLIP come from the LoRA's loader, or the checkpoint's."""
    changed = {n: copy.deepcopy(e) for n, e in graph.items() if e["class_type"] in STOCK}
    checkpoint = only_node(changed, "CheckpointLoaderSimple")
    source = checkpoint if lora is None else "lora"
    for entry in changed.values():
        inputs = entry["inputs"]
        inputs.update({name: [source, OUTPUTS[name]] for name in OUTPUTS.keys() & inputs.keys()})
        if lora is None and "text" in inputs:
            inputs["text"] = EMBEDDING.sub("", inputs["text"])
    if lora is not None:
        strengths = {"strength_model": 1.0, "strength_clip": 1.0}
        links = {name: [checkpoint, output] for name, output in OUTPUTS.items()}
        changed["lora"] = new_node("LoraLoader", {**links, "lora_name": lora, **strengths})
    return changed


def drawn(server: ComfyServer, graph: Graph, what: str) -> dict[str, Tensor]:
    """Node -> the pictures [B, 3, H, W] in [0, 1] that it saved, in the order of the nodes."""
    say(f"Running: {what}.")
    result: RunResult = server.run(graph, TIMEOUT, on_event=ProgressLines(graph))
    saving = sorted((n for n, e in graph.items() if e["class_type"] == "SaveImage"), key=int)
    return {node: torch.stack(load_images(server.files(result, node))) for node in saving}


def steps_of_255(one: Tensor, other: Tensor) -> int:
    """The largest difference over all values, in steps of 255."""
    return int((255 * (one - other).abs().max()).round())


if __name__ == "__main__":
    main()
