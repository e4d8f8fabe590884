"""Workflows in API form, changed for a measurement."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from lifelong_core.errors import InputError

Graph = dict[str, Any]
LESSON = "LearnConceptTask"
MODEL, CLIP = 1, 2
"""Which outputs of the lesson these are."""


def only_node(graph: Mapping[str, Any], kind: str) -> str:
    """The id of the only node of a kind. Raises InputError when there is none or are several."""
    found = [node for node, entry in graph.items() if entry["class_type"] == kind]
    if len(found) != 1:
        raise InputError(f"The workflow has {len(found)} nodes of the kind {kind}; expected one.")
    return found[0]


def at_true_size(graph: Mapping[str, Any], checkpoint: str, lesson: Mapping[str, int]) -> Graph:
    """The workflow with another checkpoint, a short lesson, and one picture of the lesson's size
    sampled in one step."""
    changed = copy.deepcopy(dict(graph))
    size = lesson["resolution"]
    values = {
        "CheckpointLoaderSimple": {"ckpt_name": checkpoint},
        LESSON: lesson,
        "EmptyLatentImage": {"width": size, "height": size, "batch_size": 1},
        "KSampler": {"steps": 1},
    }
    for kind, inputs in values.items():
        nodes = [entry for entry in changed.values() if entry["class_type"] == kind]
        if not nodes:
            raise InputError(f"The workflow has no node of the kind {kind}.")
        for entry in nodes:
            entry["inputs"].update(inputs)
    return changed


def with_stock_loader(graph: Mapping[str, Any], lora: str) -> Graph:
    """The workflow with the stock LoRA loader in the lesson's place, on the same checkpoint, and
    a node that counts what it loaded. What needs the lesson's other outputs is left out."""
    lesson, loader = only_node(graph, LESSON), only_node(graph, "CheckpointLoaderSimple")
    stock = {
        "model": [loader, 0],
        "clip": [loader, 1],
        "lora_name": lora,
        "strength_model": 1.0,
        "strength_clip": 1.0,
    }
    changed: Graph = {"lora": new_node("LoraLoader", stock)}
    changed["count"] = new_node("CountPatchedLayers", {"model": ["lora", 0], "clip": ["lora", 1]})
    places = {MODEL: ["lora", 0], CLIP: ["lora", 1]}
    dropped = set(_needing(graph, lesson, set(places)))
    for node, entry in graph.items():
        if node not in dropped:
            inputs = {
                name: places[value[1]] if _is_link(value) and value[0] == lesson else value
                for name, value in entry["inputs"].items()
            }
            changed[node] = {**entry, "inputs": inputs}
    return changed


def _needing(graph: Mapping[str, Any], lesson: str, replaced: set[int]) -> Iterator[str]:
    """The lesson, and all nodes that hang on outputs of it that are not replaced."""
    dropped = {lesson}
    while True:
        yield from dropped
        more = {
            node
            for node, entry in graph.items()
            for value in entry["inputs"].values()
            if node not in dropped
            and _is_link(value)
            and (value[1] not in replaced if value[0] == lesson else value[0] in dropped)
        }
        if not more:
            return
        dropped |= more


def new_node(kind: str, inputs: Graph) -> Graph:
    """An entry of a workflow in API form."""
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
