"""The stock graphs that draw what the shipped workflow of three toys draws."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from benchmarks.shared_lora import steps_of_255, stock_graph


@pytest.fixture
def graph() -> dict[str, Any]:
    """A lesson's branch of the workflow in API form."""

    def entry(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    return {
        "1": entry("CheckpointLoaderSimple", ckpt_name="demo"),
        "4": entry("LearnConceptTask", model=["1", 0], clip=["1", 1], vae=["1", 2]),
        "5": entry("ConsolidateEWC-DC", state=["4", 0], model=["1", 0], clip=["1", 1]),
        "17": entry("CLIPTextEncode", clip=["5", 2], text="a photo of embedding:my_dog dog"),
        "18": entry("CLIPTextEncode", clip=["5", 2], text=""),
        "19": entry("EmptyLatentImage", width=128, height=128, batch_size=4),
        "20": entry(
            "KSampler",
            model=["5", 1],
            positive=["17", 0],
            negative=["18", 0],
            latent_image=["19", 0],
            seed=7,
        ),
        "21": entry("VAEDecode", samples=["20", 0], vae=["1", 2]),
        "22": entry("SaveImage", images=["21", 0], filename_prefix="dog"),
        "39": entry("ExportLifelongLora", state=["5", 0], preview=["21", 0]),
    }


def test_the_lora_takes_the_place_of_all_that_taught(graph: dict[str, Any]) -> None:
    before = copy.deepcopy(graph)
    stock = stock_graph(graph, "toys.safetensors")
    assert graph == before
    assert set(stock) == {"1", "17", "18", "19", "20", "21", "22", "lora"}
    assert stock["lora"]["inputs"] == {
        "model": ["1", 0],
        "clip": ["1", 1],
        "lora_name": "toys.safetensors",
        "strength_model": 1.0,
        "strength_clip": 1.0,
    }
    assert stock["20"]["inputs"] == {**graph["20"]["inputs"], "model": ["lora", 0]}
    assert stock["17"]["inputs"] == {"clip": ["lora", 1], "text": graph["17"]["inputs"]["text"]}
    assert stock["21"] == graph["21"]


def test_the_checkpoint_alone_is_asked_for_the_plain_noun(graph: dict[str, Any]) -> None:
    stock = stock_graph(graph, None)
    assert "lora" not in stock
    assert stock["17"]["inputs"] == {"clip": ["1", 1], "text": "a photo of dog"}
    assert stock["20"]["inputs"]["model"] == ["1", 0]


def test_differences_count_in_steps_of_a_picture_file() -> None:
    one = torch.zeros(1, 3, 2, 2)
    other = one.clone()
    other[0, 1, 1, 0] = 3 / 255
    assert steps_of_255(one, other) == steps_of_255(other, one) == 3
    assert steps_of_255(one, one) == 0
