"""Attention guidance in a real server: the shipped workflow, and a word that is not there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lifelong_core.errors import WorkflowError
from lifelong_core.launch.convert import to_api
from lifelong_core.launch.paths import WORKFLOWS
from lifelong_core.launch.server import ComfyServer

WAYS = ("plain", "CAA", "OAA", "both")


def quick_workflow(server: ComfyServer) -> dict[str, Any]:
    """The shipped workflow with one picture of two steps for each way."""
    workflow = json.loads((WORKFLOWS / "two_concepts.json").read_text(encoding="utf-8"))
    prompt = to_api(workflow, server.object_info())
    for node in prompt.values():
        quick = {"steps": 2, "batch_size": 1}
        node["inputs"].update({key: quick[key] for key in quick if key in node["inputs"]})
    return prompt


def test_the_workflow_draws_four_ways(comfyui_server: ComfyServer) -> None:
    prompt = quick_workflow(comfyui_server)
    result = comfyui_server.run(prompt, 300)
    saved = [
        path.name for path in comfyui_server.files(result) if path.parent.name == "two_concepts"
    ]
    assert sorted(name.split("_")[0] for name in saved) == sorted(WAYS)
    previews = [node for node, entry in prompt.items() if entry["class_type"] == "PreviewImage"]
    assert len(previews) == 2
    assert all(len(result.outputs[node]["images"]) == 1 for node in previews)


def test_a_word_that_is_not_in_the_prompt_is_refused(comfyui_server: ComfyServer) -> None:
    prompt = quick_workflow(comfyui_server)
    for node in prompt.values():
        if "concepts" in node["inputs"]:
            node["inputs"]["concepts"] = "green horse"
    with pytest.raises(WorkflowError, match=r"green.*Found were") as refused:
        comfyui_server.run(prompt, 300)
    assert refused.value.kind == "failed"
