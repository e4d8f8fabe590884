"""The pictures that shipped workflows load, by themselves and in a ComfyUI of the user's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lifelong_core.cli import main as cli
from lifelong_core.images import load_captions
from lifelong_core.launch.pack import CHECKPOINT
from lifelong_core.launch.paths import DEMO_WEIGHTS, WORKFLOWS
from lifelong_core.world import demo_inputs


def test_inputs_are_one_folder_of_photos_per_concept_and_stay(tmp_path: Path) -> None:
    demo_inputs.prepare_demo_inputs(tmp_path)
    photos = sorted(tmp_path.glob("*/*.png"))
    assert {photo.parent.name for photo in photos} >= {"demo_dog", "demo_teddybear", "demo_style"}
    assert len(photos) == 6 * demo_inputs.PHOTOS
    assert {Image.open(photo).size for photo in photos} == {(128, 128)}
    assert len({photo.read_bytes() for photo in photos}) == len(photos)
    captions = load_captions(tmp_path / "demo_dog")
    assert len(set(captions)) == demo_inputs.PHOTOS
    assert all(caption.startswith("a photo of embedding:my_dog dog ") for caption in captions)
    drawings = load_captions(tmp_path / "demo_style")
    assert all(caption.startswith("embedding:my_style drawing of a ") for caption in drawings)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    before = [path.stat().st_mtime_ns for path in files]
    demo_inputs.prepare_demo_inputs(tmp_path)
    assert [path.stat().st_mtime_ns for path in files] == before


def test_the_plain_photo_comes_with_a_mask_over_its_object(tmp_path: Path) -> None:
    demo_inputs.prepare_demo_inputs(tmp_path)
    photo = np.asarray(Image.open(tmp_path / demo_inputs.PHOTO), dtype=np.int16)
    masked = np.asarray(Image.open(tmp_path / demo_inputs.MASKED), dtype=np.int16)
    assert (masked[..., :3] == photo).all(), "the mask editor keeps what lies under a mask"
    painted = masked[..., 3] == 0
    assert set(np.unique(masked[..., 3])) == {0, 255}
    assert 0.2 < painted.mean() < 0.8
    red = (photo[..., 0] > 150) & (photo[..., 1:] < 80).all(-1)
    assert red.mean() > 0.1 and not (red & ~painted).any()


def test_a_comfyui_of_the_users_own_gets_all_that_the_workflows_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models" / "checkpoints").mkdir(parents=True)
    photo = tmp_path / "input" / "demo_dog" / "photo_1.png"
    photo.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(photo)
    assert cli(["demo-files", str(tmp_path)]) == 0
    assert CHECKPOINT in capsys.readouterr().out
    placed = tmp_path / "models" / "checkpoints" / CHECKPOINT
    assert placed.stat().st_size == DEMO_WEIGHTS.stat().st_size
    assert Image.open(photo).size == (8, 8), "what is there stays"
    files = {path.name for path in (tmp_path / "input").iterdir()}
    for workflow in WORKFLOWS.glob("*.json"):
        for node in json.loads(workflow.read_text(encoding="utf-8"))["nodes"]:
            if node["type"] in ("LoadConceptPhotos", "LoadImage", "LoadImageMask"):
                assert node["widgets_values"][0] in files, workflow.name


def test_another_folder_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["demo-files", str(tmp_path)]) == 1
    assert "no models/checkpoints" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
