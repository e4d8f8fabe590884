"""The workflows that begin with a picture, run as shipped but with lessons of two steps."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from PIL import Image

from lifelong_core.launch.convert import to_api
from lifelong_core.launch.paths import WORKFLOWS
from lifelong_core.launch.server import ComfyServer
from lifelong_core.world.demo_inputs import MASKED
from tests.comfyui.graphs import QUICK, pixels

SHORT = {
    "LearnConceptTask": QUICK,
    "KSampler": {"steps": 2},
    "ContextControllableSampler": {"steps": 2},
    "RepeatLatentBatch": {"amount": 2},
    "RepeatImageBatch": {"amount": 2},
}


def drawn(server: ComfyServer, name: str) -> dict[str, np.ndarray]:
    """What the workflow saves, [B, H, W, 3] by the file names' prefix."""
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    prompt: dict[str, Any] = to_api(workflow, server.object_info())
    for node in prompt.values():
        node["inputs"].update(SHORT.get(node["class_type"], {}))
    result = server.run(prompt, 600)
    saving = {
        node["inputs"]["filename_prefix"].split("/")[1]: key
        for key, node in prompt.items()
        if node["class_type"] == "SaveImage"
    }
    return {prefix: pixels(server, result, key) for prefix, key in saving.items()}


def test_a_photo_is_drawn_with_and_without_the_style(comfyui_server: ComfyServer) -> None:
    saved = drawn(comfyui_server, "style_transfer")
    assert {name: made.shape for name, made in saved.items()} == {
        "my_style": (2, 128, 128, 3),
        "any_drawing": (2, 128, 128, 3),
    }
    assert np.abs(saved["my_style"] - saved["any_drawing"]).max() > 2


def test_only_the_masked_part_of_a_photo_is_changed(comfyui_server: ComfyServer) -> None:
    saved = drawn(comfyui_server, "edit_concept")
    photo = np.asarray(Image.open(comfyui_server.folder("input") / MASKED), dtype=np.int16)
    outside = photo[..., 3] == 255
    assert sorted(saved) == ["any_dog", "my_dog"]
    for made in saved.values():
        assert made.shape == (2, 128, 128, 3)
        change = np.abs(made - photo[..., :3])
        assert change[:, outside].max() == 0
        assert change[:, ~outside].mean() > 1
    assert np.abs(saved["my_dog"] - saved["any_dog"])[:, ~outside].max() > 2
