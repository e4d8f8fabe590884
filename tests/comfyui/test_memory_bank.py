"""Lessons with a memory of earlier ones in a real ComfyUI."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lifelong_core.errors import WorkflowError
from lifelong_core.files import load_tensors
from lifelong_core.launch.client import RunResult
from lifelong_core.launch.server import ComfyServer
from lifelong_core.memory import LongTermMemory
from lifelong_core.state import LifelongState, load_state
from tests.comfyui.graphs import PHOTOS, Link, Workflow, exported, lora_name, pixels, training_steps

SECOND = "demo_cat"
REPLAYS = {"method": "l2dm_lora", "learning_rate": 0.0}


def bank(
    workflow: Workflow, learned: tuple[Link, ...], vae: Link, name: str = "bank", **widgets: Any
) -> Link:
    """MEMORY_BANK of the concepts that a lesson gave; its picture is shown as `picture`."""
    state, model, clip = learned[:3]
    values = {"candidates": 2, "beta": 1.0, "steps": 2, "limit": 0, "seed": 1, **widgets}
    key = workflow.node(
        "RainbowMemoryBank", name, state=state, model=model, clip=clip, vae=vae, **values
    )
    return [key, 0]


def two_lessons(*, first: dict[str, Any], second: dict[str, Any], **banked: Any) -> Workflow:
    """A lesson, a bank, and a second lesson that replays it."""
    workflow = Workflow()
    base = workflow.checkpoint()
    one = workflow.lesson(base, workflow.folder(PHOTOS), "t_old", **{**REPLAYS, **first})
    memory = bank(workflow, one, base[2], **banked)
    given = {"memory": memory, **REPLAYS, **second}
    two = workflow.lesson(
        (one[1], one[2], base[2]), workflow.folder(SECOND), "t_new", noun="cat", state=one[0],
        name="lesson 2", **{key: value for key, value in given.items() if value is not None},
    )  # fmt: skip
    workflow.show([memory[0], 1], "picture")
    workflow.node("SaveLifelongState", "save", state=two[0], name="t_memory")
    return workflow


def saved(server: ComfyServer, result: RunResult) -> LifelongState:
    name = result.outputs["save"]["text"][0].split()[1]
    return load_state(server.folder("output/lifelong") / name)


@pytest.fixture(scope="module")
def stream(comfyui_server: ComfyServer) -> RunResult:
    workflow = two_lessons(first={}, second={})
    exported(workflow, ["lesson 2", 0], "t_memory")
    return comfyui_server.run(workflow.graph)


def test_a_lesson_replays_what_the_bank_recalled(
    comfyui_server: ComfyServer, stream: RunResult
) -> None:
    state = saved(comfyui_server, stream)
    assert "replay" in state.records[1].metrics["terms"]
    assert "replay" not in state.records[0].metrics["terms"]
    memory = LongTermMemory.of(state)
    assert memory is not None
    assert list(memory.concepts) == ["t_old", "t_new"]
    assert memory.feature_model.startswith("world_clip:")
    assert len(memory.concepts["t_old"].prompts) == 5
    assert lora_name(stream).startswith("t_memory-")


def test_lessons_of_other_methods_can_be_replayed_too(comfyui_server: ComfyServer) -> None:
    # At a rate of zero its knowledge would be the other tests' state, and so would the next lesson.
    workflow = two_lessons(first={"method": "ewc", "learning_rate": 1e-4}, second={})
    state = saved(comfyui_server, comfyui_server.run(workflow.graph))
    assert [record.settings["method"] for record in state.records] == ["ewc", "l2dm_lora"]
    assert "replay" in state.records[1].metrics["terms"]


def test_the_published_method_learns_and_is_exported(comfyui_server: ComfyServer) -> None:
    """L²DM's own adapter shifts singular values, which neither MODEL nor file holds as a LoRA."""
    workflow = two_lessons(first={"method": "l2dm"}, second={"method": "l2dm"})
    exported(workflow, ["lesson 2", 0], "t_published")
    workflow.graph["export"]["inputs"]["replace_embeddings"] = True
    small = {"name": "t_small", "rank": 8, "replace_embeddings": True}
    workflow.node("ExportLifelongLora", "small", state=["lesson 2", 0], **small)
    result = comfyui_server.run(workflow.graph)
    state = saved(comfyui_server, result)
    assert state.adapter_spec.kind == "spectral"
    assert "replay" in state.records[1].metrics["terms"]
    assert lora_name(result).startswith("t_published-")
    assert "is kept" not in result.outputs["export"]["text"][0]
    (told,) = re.findall(r"of the change ([\d.]+) % is kept", result.outputs["small"]["text"][0])
    (path,) = comfyui_server.folder("models/loras").glob("t_small-*.safetensors")
    tensors, metadata = load_tensors(path)
    assert metadata["ss_network_dim"] == "8"
    assert 100 * float(metadata["lifelong.kept_energy"]) == pytest.approx(float(told), abs=0.06)
    ranks = {len(value) for key, value in tensors.items() if key.endswith("lora_down.weight")}
    assert ranks == {8}


def test_the_picture_shows_every_candidate(comfyui_server: ComfyServer, stream: RunResult) -> None:
    (picture,) = pixels(comfyui_server, stream, "picture")
    assert picture.shape[0] > 5 * 96 and picture.shape[1] >= 640
    assert stream.outputs["bank"]["images"]
    assert training_steps(stream, "bank")[-1] == 5


def test_another_choice_draws_nothing_anew(comfyui_server: ComfyServer, stream: RunResult) -> None:
    folder = comfyui_server.folder("user/__lifelong") / "memories"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) >= 5
    comfyui_server.run(two_lessons(first={}, second={}, beta=0.1, selection="random").graph)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_other_guidance_draws_other_pictures(comfyui_server: ComfyServer) -> None:
    folder = comfyui_server.folder("user/__lifelong") / "memories"
    before = set(folder.iterdir()) if folder.is_dir() else set()
    for share in (0.5, 1.0):  # 0.5 is the default, which other tests here draw with
        comfyui_server.run(two_lessons(first={}, second={}, seed=3, guidance=share).graph)
    assert len(set(folder.iterdir()) - before) == 2 * 5


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({}, {"memory": None}, "none were given.*Rainbow Memory Bank"),
        ({}, {"method": "lora"}, "'lora' replays no pictures"),
        ({"method": "lora_merge"}, {}, "memory bank is empty"),
        ({}, {"resolution": 64}, "128 x 128 pixels, the lesson's 64 x 64"),
    ],
)
def test_what_does_not_go_together_is_refused(
    comfyui_server: ComfyServer,
    first: dict[str, Any],
    second: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(WorkflowError, match=message) as caught:
        comfyui_server.run(two_lessons(first=first, second=second).graph)
    assert caught.value.kind == "failed"


def test_a_cancelled_bank_goes_on_where_it_was(comfyui_server: ComfyServer) -> None:
    folder = comfyui_server.folder("user/__lifelong") / "memories"
    asked: list[int] = []

    def cancel_at_two(event: dict[str, Any]) -> None:
        of_bank = event["type"] == "progress" and event["data"]["node"] == "bank"
        if of_bank and event["data"]["value"] >= 2 and not asked:
            asked.append(event["data"]["value"])
            comfyui_server.interrupt()

    before = set(folder.iterdir()) if folder.is_dir() else set()
    graph = two_lessons(first={}, second={}, seed=77, steps=8).graph
    with pytest.raises(WorkflowError) as caught:
        comfyui_server.run(graph, on_event=cancel_at_two)
    assert caught.value.kind == "interrupted"
    kept = {path: path.stat().st_mtime_ns for path in set(folder.iterdir()) - before}
    assert 2 <= len(kept) < 5
    comfyui_server.run(graph)
    found = set(folder.iterdir()) - before
    assert len(found) == 5
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
