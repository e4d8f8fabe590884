"""Runs in a real server: finished, cached, refused, failed, interrupted and given up on."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from PIL import Image

from lifelong_core.errors import WorkflowError
from lifelong_core.launch.pack import CHECKPOINT
from lifelong_core.launch.server import ComfyServer


def picture(color: int, prefix: str = "server_runs") -> dict[str, Any]:
    """Stock nodes: a plain picture, saved."""
    size = {"width": 64, "height": 32, "batch_size": 1}
    return {
        "1": {"class_type": "EmptyImage", "inputs": {**size, "color": color}},
        "2": {
            "class_type": "SaveImage",
            "inputs": {"images": ["1", 0], "filename_prefix": prefix},
        },
    }


def long_run(seed: int) -> dict[str, Any]:
    """Thousands of sampling steps on the demo model: something to interrupt."""
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a dog"}},
        "3": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": 128, "height": 128, "batch_size": 1},
        },
        "4": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["2", 0],
                "latent_image": ["3", 0],
                "seed": seed,
                "steps": 10000,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "5": {
            "class_type": "SaveLatent",
            "inputs": {"samples": ["4", 0], "filename_prefix": "server_runs"},
        },
    }


def idle(server: ComfyServer) -> bool:
    """Whether the server comes to rest soon."""
    from lifelong_core.launch.client import get_json

    for _ in range(100):
        if not get_json(f"{server.base_url}/prompt")["exec_info"]["queue_remaining"]:
            return True
        time.sleep(0.1)
    return False


def test_a_run_gives_its_files_events_and_history(comfyui_server: ComfyServer) -> None:
    events: list[str] = []
    result = comfyui_server.run(picture(0xFF0000), 60, lambda event: events.append(event["type"]))
    (path,) = comfyui_server.files(result)
    with Image.open(path) as image:
        assert image.size == (64, 32)
        assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    assert result.executed == ["1", "2"]
    assert events[-1] == "execution_success"
    again = comfyui_server.run(picture(0xFF0000), 60)
    assert set(again.cached) == {"1", "2"}
    assert again.executed == []


def test_a_refused_workflow_says_why(comfyui_server: ComfyServer) -> None:
    workflow = picture(0)
    workflow["1"]["inputs"]["width"] = -1
    with pytest.raises(WorkflowError, match=r"node 1 \(EmptyImage\).*width") as refused:
        comfyui_server.run(workflow, 60)
    assert refused.value.kind == "refused"


def test_a_node_that_fails_says_why(comfyui_server: ComfyServer) -> None:
    with pytest.raises(WorkflowError, match=r"in node 2 \(SaveImage\)") as failed:
        comfyui_server.run(picture(1, prefix="../outside"), 60)
    assert failed.value.kind == "failed"


def test_an_interrupted_run_is_told_as_such(comfyui_server: ComfyServer) -> None:
    stop = threading.Thread(target=comfyui_server.interrupt)

    def on_event(event: dict[str, Any]) -> None:
        if event["type"] == "progress" and not stop.ident:
            stop.start()

    with pytest.raises(WorkflowError, match="Interrupted") as stopped:
        comfyui_server.run(long_run(1), 120, on_event)
    stop.join()
    assert stopped.value.kind == "interrupted"


def test_a_run_given_up_on_is_taken_back(comfyui_server: ComfyServer) -> None:
    with pytest.raises(WorkflowError) as late:
        comfyui_server.run(long_run(2), 1)
    assert late.value.kind == "timeout"
    assert idle(comfyui_server)


def test_checking_does_not_run(comfyui_server: ComfyServer) -> None:
    before = set(comfyui_server.folder("output").rglob("*"))
    comfyui_server.check(long_run(3))
    with pytest.raises(WorkflowError):
        comfyui_server.check({"1": {"class_type": "NoSuchNode", "inputs": {}}})
    assert set(comfyui_server.folder("output").rglob("*")) == before
