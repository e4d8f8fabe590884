"""The pack in a real server: loaded without complaint, every node there with its help page."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from lifelong_core.launch.client import get_bytes, get_json
from lifelong_core.launch.pack import FOLDER
from lifelong_core.launch.paths import ROOT
from lifelong_core.launch.server import ComfyServer

MISSION_NODES = {
    "LearnConceptTask",
    "ConsolidateEWC-DC",
    "RainbowMemoryBank",
    "ConceptAttentionArtistSampler",
    "OrthogonalAttentionGuidance",
}


def declared_nodes() -> list[str]:
    """Every node_id="…" written in nodes/."""
    found = set()
    for path in (ROOT / "nodes").rglob("*.py"):
        for item in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(item, ast.keyword) and item.arg == "node_id":
                assert isinstance(item.value, ast.Constant), f"{path}: node_id is no plain text"
                found.add(item.value.value)
    return sorted(found)


def locale_files() -> list[Path]:
    return sorted((ROOT / "locales").glob("*/*.json"))


@pytest.fixture(scope="module")
def pack_nodes(comfyui_server: ComfyServer) -> dict[str, Any]:
    info = comfyui_server.object_info()
    return {
        name: node
        for name, node in info.items()
        if node["python_module"] == f"custom_nodes.{FOLDER}"
    }


def test_the_pack_loads_without_complaint(comfyui_server: ComfyServer) -> None:
    log = comfyui_server.startup_log
    assert re.search(rf"custom_nodes.{FOLDER}\s*$", log, re.MULTILINE), log
    for trouble in ("Cannot import", "IMPORT FAILED", "Traceback"):
        assert trouble not in log, log
    complaints = [
        line
        for line in log.splitlines()
        if FOLDER in line.lower() and re.search("warning|error", line, re.IGNORECASE)
    ]
    assert not complaints


def test_every_node_is_registered(pack_nodes: dict[str, Any]) -> None:
    assert sorted(pack_nodes) == declared_nodes()
    assert set(pack_nodes) >= MISSION_NODES


@pytest.mark.parametrize("node", declared_nodes())
def test_every_node_can_be_understood(
    node: str, pack_nodes: dict[str, Any], comfyui_server: ComfyServer
) -> None:
    info = pack_nodes[node]
    assert info["category"].split("/")[0] == FOLDER
    assert info["description"]
    assert info["search_aliases"]
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    assert [name for name, spec in inputs.items() if not spec[1].get("tooltip")] == []
    assert all(info["output_tooltips"])
    page = get_bytes(f"{comfyui_server.base_url}/extensions/{FOLDER}/docs/{node}.md").decode()
    missing = [name for name in inputs if name not in page]
    assert not missing, f"the help page of {node} does not tell of {missing}"
    labels = json.loads((ROOT / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))[node]
    unnamed = [
        known["name"]
        for name, known in labels.get("inputs", {}).items()
        if known["name"].lower() != name.replace("_", " ") and known["name"] not in page
    ]
    assert not unnamed, f"the help page of {node} does not tell of the labels {unnamed}"


@pytest.mark.parametrize("path", locale_files(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_locales_are_served_and_name_what_exists(
    path: Path, pack_nodes: dict[str, Any], comfyui_server: ComfyServer
) -> None:
    texts = json.loads(path.read_text(encoding="utf-8"))
    served = get_json(f"{comfyui_server.base_url}/i18n")[path.parent.name]
    if path.stem != "main":
        served = served[path.stem]
    assert {key: served[key] for key in texts} == texts
    if path.stem == "nodeDefs":
        for node, text in texts.items():
            known = pack_nodes[node]["input"]
            names = {*known.get("required", {}), *known.get("optional", {})}
            assert set(text.get("inputs", {})) <= names, node
