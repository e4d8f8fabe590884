"""The shipped workflows in the real web page: complete, quiet, and accepted by the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lifelong_core.launch.client import get_bytes, get_json
from lifelong_core.launch.convert import to_api
from lifelong_core.launch.frontend import Frontend
from lifelong_core.launch.pack import FOLDER
from lifelong_core.launch.paths import WORKFLOWS
from lifelong_core.launch.server import ComfyServer

PATHS = sorted(WORKFLOWS.glob("*.json"))
each_workflow = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    workflow: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return workflow


def without_titles(prompt: dict[str, Any]) -> dict[str, Any]:
    return {
        node: {"class_type": entry["class_type"], "inputs": entry["inputs"]}
        for node, entry in prompt.items()
    }


def test_the_demos_workflow_ships() -> None:
    assert "learn_concept" in [path.stem for path in PATHS]


def test_every_node_has_a_workflow(comfyui_server: ComfyServer) -> None:
    used = {node["type"] for path in PATHS for node in read(path)["nodes"]}
    ours = {
        name
        for name, node in comfyui_server.object_info().items()
        if node["python_module"] == f"custom_nodes.{FOLDER}"
    }
    assert ours - used == set()


@each_workflow
def test_it_is_in_the_template_browser_with_its_picture(
    path: Path, comfyui_server: ComfyServer
) -> None:
    base = comfyui_server.base_url
    assert path.stem in get_json(f"{base}/workflow_templates")[FOLDER]
    address = f"{base}/api/workflow_templates/{FOLDER}/{path.stem}"
    assert json.loads(get_bytes(f"{address}.json")) == read(path)
    assert get_bytes(f"{address}.jpg")[:3] == b"\xff\xd8\xff", "not a JPEG"


@each_workflow
def test_it_opens_complete_and_quiet_and_is_accepted(
    path: Path, browser_page: Frontend, comfyui_server: ComfyServer
) -> None:
    workflow = read(path)
    report = browser_page.load(workflow)
    assert report == {"nodes": len(workflow["nodes"]), "missing": [], "wrong": []}
    assert browser_page.problems(FOLDER) == []
    prompt = browser_page.prompt()
    comfyui_server.check(prompt)


@each_workflow
def test_our_conversion_equals_the_pages(
    path: Path, browser_page: Frontend, comfyui_server: ComfyServer
) -> None:
    workflow = read(path)
    browser_page.load(workflow)
    ours = to_api(workflow, comfyui_server.object_info())
    assert without_titles(ours) == without_titles(browser_page.prompt())
