"""Lessons and consolidations one after another in a real ComfyUI, and the report on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lifelong_core.backbone import random_backbone, save_single_file
from lifelong_core.errors import WorkflowError
from lifelong_core.launch.client import RunResult
from lifelong_core.launch.server import ComfyServer
from lifelong_core.state import LifelongState, load_state
from tests.comfyui.graphs import (
    PHOTOS,
    Graph,
    Workflow,
    all_files,
    exported,
    lora_name,
    pixels,
    training_steps,
)

SECOND = "demo_cat"


def saved(server: ComfyServer, result: RunResult) -> LifelongState:
    """What the node "save" wrote."""
    name = result.outputs["save"]["text"][0].split()[1]
    return load_state(server.folder("output/lifelong") / name)


@pytest.fixture(scope="module")
def stream(comfyui_server: ComfyServer) -> RunResult:
    """Two lessons, each consolidated, with a report on both."""
    workflow = Workflow()
    base = workflow.checkpoint()
    vae, first, second = base[2], workflow.folder(PHOTOS), workflow.folder(SECOND)
    lesson = workflow.lesson(base, first, "t_one", method="ewc")
    one = workflow.consolidation(lesson, vae, first, name="consolidate 1")
    model, clip = one[1], one[2]
    lesson = workflow.lesson(
        (model, clip, vae), second, "t_two", noun="cat", method="ewc", state=one[0], name="lesson 2"
    )
    both = workflow.consolidation(lesson, vae, second, name="consolidate 2")
    workflow.picture(both[1], both[2], vae, "embedding:t_one dog", "from_node")
    report = workflow.node(
        "LifelongReport", "report", state=both[0], model=both[1], clip=both[2], vae=vae,
        concepts=10, pictures=1, steps=2, seed=0,
    )  # fmt: skip
    workflow.show([report, 0], "plots")
    workflow.show([report, 1], "sheet")
    workflow.node("SaveLifelongState", "save", state=both[0], name="t_stream")
    exported(workflow, both[0], "t_stream")
    return comfyui_server.run(workflow.graph)


def test_lessons_are_consolidated_one_after_another(
    comfyui_server: ComfyServer, stream: RunResult
) -> None:
    state = saved(comfyui_server, stream)
    assert [concept.token for concept in state.concepts] == ["t_one", "t_two"]
    assert state.extras["fisher"]["lessons"].tolist() == [0, 1]
    phases = [set(record.metrics["consolidation"]) for record in state.records]
    assert len(phases[0]) == 1 and len(phases[1]) == 2
    assert lora_name(stream).startswith("t_stream-")


def test_the_report_of_a_consolidation_says_what_was_done(stream: RunResult) -> None:
    first, second = (stream.outputs[f"consolidate {n}"]["text"][0] for n in (1, 2))
    assert "embedding:t_one dog, lesson 1 of 1" in first
    assert "nothing to do" in first and "weights are as they were" in first
    assert "embedding:t_two cat, lesson 2 of 2" in second
    assert "2 iterations" in second and "counts 2 of 2 lessons" in second
    assert "weights moved by" in second and "entropy" in second


def test_a_report_shows_what_was_learned_and_kept(
    comfyui_server: ComfyServer, stream: RunResult
) -> None:
    text = stream.outputs["report"]["text"][0]
    assert "2 concepts" in text and "embedding:t_one dog" in text and "kept: " in text
    assert pixels(comfyui_server, stream, "plots").shape[1] > 1000
    (sheet,) = pixels(comfyui_server, stream, "sheet")
    assert sheet.shape[0] > 2 * 128 and sheet.std() > 1
    assert stream.outputs["report"]["images"]


def test_the_state_alone_gives_charts_and_no_pictures(
    comfyui_server: ComfyServer, stream: RunResult
) -> None:
    workflow = Workflow()
    name = stream.outputs["save"]["text"][0].split()[1]
    state = [workflow.node("LoadLifelongState", file=name), 0]
    widgets = {"concepts": 10, "pictures": 1, "steps": 2, "seed": 0}
    report = workflow.node("LifelongReport", "report", state=state, **widgets)
    workflow.show([report, 0], "plots")
    workflow.show([report, 1], "sheet")
    result = comfyui_server.run(workflow.graph)
    assert "plots" in result.outputs and "sheet" not in result.outputs
    assert "kept" not in result.outputs["report"]["text"][0]
    workflow.graph["report"]["inputs"]["vae"] = list(workflow.checkpoint()[2])
    with pytest.raises(WorkflowError, match="all of model, clip and vae"):
        comfyui_server.run(workflow.graph)


def test_the_exported_lora_draws_as_the_consolidated_model(
    comfyui_server: ComfyServer, stream: RunResult
) -> None:
    workflow = Workflow()
    model, clip, vae = workflow.checkpoint()
    lora = workflow.node(
        "LoraLoader", model=model, clip=clip, lora_name=lora_name(stream),
        strength_model=1.0, strength_clip=1.0,
    )  # fmt: skip
    workflow.picture([lora, 0], [lora, 1], vae, "embedding:t_one dog", "from_files")
    result = comfyui_server.run(workflow.graph)
    shown = pixels(comfyui_server, result, "from_files")
    assert np.abs(shown - pixels(comfyui_server, stream, "from_node")).max() <= 2


def one_lesson(token: str, *, folder: str = PHOTOS, cached: bool = True, **widgets: Any) -> Graph:
    """A lesson on `PHOTOS`, consolidated with the pictures of `folder`. `cached` False puts a node
    in between that changes no picture, so that ComfyUI's own cache does not know the workflow."""
    workflow = Workflow()
    base, photos = workflow.checkpoint(), workflow.folder(PHOTOS)
    lesson = workflow.lesson(base, photos, token)
    given = workflow.folder(folder) if folder != PHOTOS else photos
    if not cached:
        given = [workflow.node("RepeatImageBatch", image=given, amount=1), 0]
    workflow.consolidation(lesson, base[2], given, name="consolidate", **widgets)
    return workflow.graph


def test_other_pictures_or_captions_are_refused_and_leave_nothing(
    comfyui_server: ComfyServer,
) -> None:
    comfyui_server.run(one_lesson("t_wrong"))
    before = all_files(comfyui_server)
    captions = "\n".join(["embedding:t_wrong dog on a table"] * 5)
    for changes in ({"folder": SECOND}, {"captions": captions}):
        with pytest.raises(WorkflowError, match="not those of the newest lesson") as caught:
            comfyui_server.run(one_lesson("t_wrong", **changes))
        assert caught.value.kind == "failed"
    assert all_files(comfyui_server) == before


def test_a_model_of_another_checkpoint_is_refused(comfyui_server: ComfyServer) -> None:
    name = "t_consolidate_other.safetensors"
    path = comfyui_server.folder("models/checkpoints") / name
    save_single_file(random_backbone("demo", seed=78), path)
    workflow = Workflow()
    base, other, photos = workflow.checkpoint(), workflow.checkpoint(name), workflow.folder(PHOTOS)
    state = workflow.lesson(base, photos, "t_wrong")[0]
    workflow.consolidation((state, other[0], other[1]), other[2], photos)
    with pytest.raises(WorkflowError, match="fingerprint"):
        comfyui_server.run(workflow.graph)


def test_a_lesson_is_counted_once(comfyui_server: ComfyServer) -> None:
    workflow = Workflow()
    base, photos = workflow.checkpoint(), workflow.folder(PHOTOS)
    once = workflow.consolidation(workflow.lesson(base, photos, "t_wrong"), base[2], photos)
    workflow.consolidation(once, base[2], photos)
    with pytest.raises(WorkflowError, match="already in this state's Fisher"):
        comfyui_server.run(workflow.graph)


def test_distilling_a_first_concept_changes_nothing(comfyui_server: ComfyServer) -> None:
    graph = one_lesson("t_wrong", phases="DSC only", classifier_terms=False)
    text = comfyui_server.run(graph).outputs["consolidate"]["text"][0]
    assert "nothing to do" in text and "weights are as they were" in text


def test_a_finished_consolidation_is_taken_from_disk(comfyui_server: ComfyServer) -> None:
    first = comfyui_server.run(one_lesson("t_again", phases="Fisher only"))
    second = comfyui_server.run(one_lesson("t_again", phases="Fisher only", cached=False))
    assert "consolidate" in second.executed
    assert training_steps(first, "consolidate")[-1] == 2
    assert training_steps(second, "consolidate") == []
    assert second.outputs["consolidate"] == first.outputs["consolidate"]


def test_cancel_within_an_iteration_leaves_nothing(comfyui_server: ComfyServer) -> None:
    comfyui_server.run(one_lesson("t_stop"))
    before = all_files(comfyui_server)
    seen: list[int] = []
    asked: list[int] = []

    def cancel_at_three(event: dict[str, Any]) -> None:
        if event["type"] == "progress" and event["data"]["node"] == "consolidate":
            seen.append(event["data"]["value"])
            if event["data"]["value"] >= 3 and not asked:
                asked.append(event["data"]["value"])
                comfyui_server.interrupt()

    long = one_lesson("t_stop", phases="Fisher only", fisher_iterations=5000)
    with pytest.raises(WorkflowError) as caught:
        comfyui_server.run(long, on_event=cancel_at_three)
    assert caught.value.kind == "interrupted"
    assert seen[-1] <= asked[0] + 3, "it went on after the cancel"
    assert all_files(comfyui_server) == before
    assert comfyui_server.run(one_lesson("t_stop", seed=2)).outputs["consolidate"]["text"]
