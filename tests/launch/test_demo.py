"""The demo's pictures before, and its lines and files after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lifelong_core.launch.client import RunResult
from lifelong_core.launch.collect import collect, tell
from lifelong_core.launch.comfyui import ComfyUI
from lifelong_core.launch.progress import ProgressLines
from lifelong_core.launch.server import ComfyServer

WORKFLOW = {"1": {"_meta": {"title": "Load"}}, "2": {"_meta": {"title": "Learn Concept"}}}


def test_progress_is_told_by_title_and_tenth() -> None:
    lines: list[str] = []
    tell = ProgressLines(WORKFLOW, lines.append)
    tell({"type": "executing", "data": {"node": "2"}})
    for value in range(1, 201):
        tell({"type": "progress", "data": {"node": "2", "value": value, "max": 200}})
    tell({"type": "executing", "data": {"node": None}})
    tell({"type": "status", "data": {}})
    assert lines[:2] == ["  Learn Concept", "    20 of 200"]
    assert lines[-1] == "    200 of 200"
    assert len(lines) == 11


def test_only_what_the_run_reports_is_collected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    for name in (
        "output/dogs/dog_00007_.png",
        "output/dogs/dog_00008_.png",
        "output/older_00001_.png",
        "temp/ComfyUI_temp_abcde_00001_.png",
        "temp/ComfyUI_temp_fghij_00001_.png",
        "models/loras/my-1234.safetensors",
        "models/loras/my-1234.preview.png",
        "models/loras/other.safetensors",
        "models/embeddings/my_dog.safetensors",
    ):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(name)
    workflow = {
        "1": entry("CLIPTextEncode", "Prompt", text="a dog"),
        "2": entry("CLIPTextEncode", "Negative", text="blurry"),
        "3": entry("KSampler", "KSampler", negative=["2", 0], positive=["1", 0], seed=1),
        "4": entry("SaveImage", "Save Image", images=["3", 0], filename_prefix="dogs/dog"),
        "5": entry("LearnConceptTask", "Learn Concept", steps=3),
        "6": entry("ExportLifelongLora", "Export"),
        "7": entry("PreviewImage", "Preview Image"),
    }
    report = "LoRA: my-1234.safetensors\nembedding: my_dog.safetensors\nmy-1234.preview.png"
    outputs = {
        "4": {"images": [image("dogs", "dog_00007_.png"), image("dogs", "dog_00008_.png")]},
        "5": {"images": [image("", "ComfyUI_temp_abcde_00001_.png", "temp")]},
        "6": {"text": [report]},
        "7": {"images": [image("", "ComfyUI_temp_fghij_00001_.png", "temp")]},
    }
    server = ComfyServer(ComfyUI(tmp_path, own=True), base, cpu=True)
    result = RunResult("x", {"outputs": outputs})
    made = collect(server, workflow, result, tmp_path / "out")
    assert [(what, [path.name for path in paths]) for what, paths in made[:2]] == [
        ('"a dog"', ["dog_1.png", "dog_2.png"]),
        ("shown by Learn Concept", ["learn_concept_1.png"]),
    ]
    assert [paths[0].name for _, paths in made[2:]] == [
        "my-1234.safetensors",
        "my-1234.preview.png",
        "my_dog.safetensors",
    ]
    copies = [path for _, paths in made for path in paths]
    assert sorted((tmp_path / "out").iterdir()) == sorted(copies)
    assert copies[1].read_text() == "output/dogs/dog_00008_.png"
    tell(made, tmp_path / "out")
    assert 'dog_1.png to dog_2.png: "a dog"' in capsys.readouterr().out


def entry(kind: str, title: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "_meta": {"title": title}, "inputs": inputs}


def image(subfolder: str, filename: str, kind: str = "output") -> dict[str, str]:
    return {"filename": filename, "subfolder": subfolder, "type": kind}
