"""The workflow of `make demo`, run as the demo runs it but with a lesson of two steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from lifelong_core.launch.client import RunResult
from lifelong_core.launch.collect import Made, collect, reports
from lifelong_core.launch.convert import to_api
from lifelong_core.launch.demo import WORKFLOW
from lifelong_core.launch.server import ComfyServer
from lifelong_core.world.demo_inputs import PHOTOS
from tests.comfyui.graphs import training_steps

SHORT = {
    "LearnConceptTask": {"steps": 2, "prior_pictures": 1},
    "KSampler": {"steps": 2},
}


def short_demo(server: ComfyServer) -> dict[str, Any]:
    prompt = to_api(json.loads(WORKFLOW.read_text(encoding="utf-8")), server.object_info())
    for node in prompt.values():
        node["inputs"].update(SHORT.get(node["class_type"], {}))
    return prompt


def only(prompt: dict[str, Any], kind: str) -> str:
    (node,) = (name for name, entry in prompt.items() if entry["class_type"] == kind)
    return node


def lessons(server: ComfyServer) -> dict[Path, int]:
    """The finished lessons and when each was written."""
    folder = server.folder("user") / "__lifelong" / "lessons"
    return {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


def names(made: Made) -> list[str]:
    return [path.name for _, paths in made for path in paths]


def export_report(result: RunResult) -> list[str]:
    return [text for text in reports(result) if ".preview.png" in text]


def test_the_demos_workflow_makes_its_files_and_trains_once(
    comfyui_server: ComfyServer, tmp_path: Path
) -> None:
    prompt = short_demo(comfyui_server)
    lesson, photos = only(prompt, "LearnConceptTask"), only(prompt, "LoadConceptPhotos")
    before = lessons(comfyui_server)
    first = comfyui_server.run(prompt)
    learned = lessons(comfyui_server)
    assert training_steps(first, lesson)[-1] == 2
    assert len(learned) == len(before) + 1

    made = names(collect(comfyui_server, prompt, first, tmp_path / "made"))
    (lora,) = (name for name in made if name.startswith("my_concepts-") and "preview" not in name)
    expected = {lora, lora.replace(".safetensors", ".preview.png"), "my_dog.safetensors"}
    expected |= {f"{kind}_{number}.png" for kind in ("my_dog", "any_dog") for number in range(1, 5)}
    assert expected <= set(made), made
    assert any(name.endswith(".lifelong.safetensors") for name in made)
    for path in (tmp_path / "made").glob("*.png"):
        Image.open(path).verify()

    # ComfyUI keeps nothing of a photo that was touched, nor of what came of it; the lesson does.
    folder = comfyui_server.folder("input") / prompt[photos]["inputs"]["folder"]
    assert len(list(folder.glob("*.png"))) == PHOTOS
    next(folder.glob("*.png")).touch()
    second = comfyui_server.run(prompt)
    assert {photos, lesson} <= set(second.executed)
    assert lessons(comfyui_server) == learned, "it was learned again"
    assert len(training_steps(second, lesson)) <= 1
    assert "This was done before" in comfyui_server.logs()
    assert export_report(second) == export_report(first) != []
    again = names(collect(comfyui_server, prompt, second, tmp_path / "again"))
    assert sorted(again) == sorted(made)
