"""The workflow of the true-size check, and the same with the stock loader in the lesson's place."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.graphs import at_true_size, only_node, with_stock_loader
from lifelong_core.errors import InputError

LESSON = {"steps": 2, "resolution": 256}


def entry(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def workflow() -> dict[str, Any]:
    return {
        "1": entry("CheckpointLoaderSimple", ckpt_name="demo"),
        "2": entry("LoadImage", image="a.png"),
        "3": entry("LearnConceptTask", model=["1", 0], clip=["1", 1], images=["2", 0], steps=200),
        "4": entry("ExportLifelongLora", state=["3", 0], preview=["8", 0], name="x"),
        "5": entry("CLIPTextEncode", clip=["3", 2], text="a dog"),
        "6": entry("EmptyLatentImage", width=128, height=128, batch_size=4),
        "7": entry("KSampler", model=["3", 1], positive=["5", 0], latent_image=["6", 0], steps=20),
        "8": entry("VAEDecode", samples=["7", 0], vae=["1", 2]),
        "9": entry("SaveImage", images=["8", 0]),
        "10": entry("PreviewImage", images=["3", 3]),
        "11": entry("ShowText", text=["4", 0]),
    }


def test_only_size_steps_and_checkpoint_change() -> None:
    before = workflow()
    after = at_true_size(before, "random", LESSON)
    assert before == workflow()
    expected = workflow()
    expected["1"]["inputs"]["ckpt_name"] = "random"
    expected["3"]["inputs"].update(steps=2, resolution=256)
    expected["6"]["inputs"].update(width=256, height=256, batch_size=1)
    expected["7"]["inputs"]["steps"] = 1
    assert after == expected


def test_the_stock_loader_takes_the_lessons_place() -> None:
    before = workflow()
    after = with_stock_loader(before, "x.safetensors")
    assert before == workflow()
    assert after.keys() == {"1", "2", "5", "6", "7", "8", "9", "lora", "count"}
    assert after["lora"]["class_type"] == "LoraLoader"
    assert after["lora"]["inputs"] == {
        "model": ["1", 0], "clip": ["1", 1], "lora_name": "x.safetensors",
        "strength_model": 1.0, "strength_clip": 1.0,
    }  # fmt: skip
    assert after["count"]["inputs"] == {"model": ["lora", 0], "clip": ["lora", 1]}
    assert after["5"]["inputs"]["clip"] == ["lora", 1]
    assert after["7"]["inputs"]["model"] == ["lora", 0]
    for node in ("1", "2", "6", "8", "9"):
        assert after[node] == before[node]


def test_workflows_of_another_kind_are_refused() -> None:
    without = {node: value for node, value in workflow().items() if node != "6"}
    with pytest.raises(InputError, match="EmptyLatentImage"):
        at_true_size(without, "random", LESSON)
    with pytest.raises(InputError, match="2 nodes of the kind LearnConceptTask"):
        only_node({**workflow(), "33": entry("LearnConceptTask")}, "LearnConceptTask")
