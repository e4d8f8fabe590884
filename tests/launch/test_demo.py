"""The demo's pictures before, and its lines and files after."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lifelong_core.launch import demo
from lifelong_core.launch.client import RunResult
from lifelong_core.launch.comfyui import ComfyUI
from lifelong_core.launch.progress import ProgressLines
from lifelong_core.launch.server import ComfyServer

WORKFLOW = {"1": {"_meta": {"title": "Load"}}, "2": {"_meta": {"title": "Learn Concept"}}}


def test_inputs_are_one_folder_of_photos_per_toy_and_stay(tmp_path: Path) -> None:
    demo.prepare_demo_inputs(tmp_path)
    photos = sorted(tmp_path.glob("*/*.png"))
    assert {photo.parent.name for photo in photos} >= {"demo_dog", "demo_teddybear"}
    assert len(photos) == 5 * demo.PHOTOS
    assert {Image.open(photo).size for photo in photos} == {(128, 128)}
    assert len({photo.read_bytes() for photo in photos}) == len(photos)
    before = [photo.stat().st_mtime_ns for photo in photos]
    demo.prepare_demo_inputs(tmp_path)
    assert [photo.stat().st_mtime_ns for photo in photos] == before


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
        "output/picture_1.png",
        "output/older.png",
        "models/loras/my-1234.safetensors",
        "models/loras/my-1234.preview.png",
        "models/loras/other.safetensors",
        "models/embeddings/my_dog.safetensors",
    ):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(name)
    picture = {"filename": "picture_1.png", "subfolder": "", "type": "output"}
    report = "LoRA: my-1234.safetensors\nembedding: my_dog.safetensors\nmy-1234.preview.png"
    outputs = {"5": {"images": [picture]}, "6": {"text": [report]}}
    workflow = {"5": {"_meta": {"title": "Save: the dog"}}, "6": {"_meta": {"title": "Export"}}}
    server = ComfyServer(ComfyUI(tmp_path, own=True), base, cpu=True)
    made = demo.collect(server, workflow, RunResult("x", {"outputs": outputs}), tmp_path / "out")
    assert [path.name for _, path in made] == [
        "save_the_dog_1.png",
        "my-1234.safetensors",
        "my-1234.preview.png",
        "my_dog.safetensors",
    ]
    assert sorted(tmp_path.glob("out/*")) == sorted(path for _, path in made)
    demo.tell(made)
    assert "my_dog.safetensors" in capsys.readouterr().out
