"""Regions in a real server: the shipped workflow, and a concept that nobody taught."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lifelong_core.errors import WorkflowError
from lifelong_core.launch.convert import to_api
from lifelong_core.launch.paths import WORKFLOWS
from lifelong_core.launch.server import ComfyServer
from tests.comfyui.graphs import QUICK

SHORT = {
    "LearnConceptTask": QUICK,
    "KSampler": {"steps": 2},
    "ContextControllableSampler": {"steps": 2},
    "AutomaticRegions": {"steps": 2},
    "EmptyLatentImage": {"batch_size": 1},
}


def quick_workflow(server: ComfyServer) -> dict[str, Any]:
    """The shipped workflow with lessons of three steps and one picture of two for each way."""
    workflow = json.loads((WORKFLOWS / "regions.json").read_text(encoding="utf-8"))
    prompt = to_api(workflow, server.object_info())
    for node in prompt.values():
        node["inputs"].update(SHORT.get(node["class_type"], {}))
    return prompt


def test_the_workflow_learns_two_toys_and_draws_them_in_every_way(
    comfyui_server: ComfyServer,
) -> None:
    prompt = quick_workflow(comfyui_server)
    result = comfyui_server.run(prompt, 300)
    saved = [path.name for path in comfyui_server.files(result) if path.parent.name == "regions"]
    assert sorted(name.split("_")[0] for name in saved) == ["automatic", "plain", "regions"]
    shown = [node for node, entry in prompt.items() if entry["class_type"] == "PreviewImage"]
    assert [len(result.outputs[node]["images"]) for node in shown] == [1, 1]


def test_a_concept_that_nobody_taught_is_refused(comfyui_server: ComfyServer) -> None:
    prompt = quick_workflow(comfyui_server)
    first = next(e for e in prompt.values() if e["class_type"] == "RegionalConcept")
    first["inputs"]["prompt"] = "a photo of embedding:my_cow cow"
    with pytest.raises(WorkflowError, match=r"embedding:my_cow.*The state knows") as refused:
        comfyui_server.run(prompt, 300)
    assert refused.value.kind == "failed"
