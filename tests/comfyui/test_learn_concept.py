"""A lesson in a real ComfyUI: what comes out, what stays as it was, cancelling, caching."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lifelong_core.errors import WorkflowError
from lifelong_core.launch.client import RunResult
from lifelong_core.launch.server import ComfyServer
from lifelong_core.state import load_state
from tests.comfyui.graphs import (
    PHOTOS,
    Graph,
    Workflow,
    all_files,
    change,
    exported,
    latents,
    lora_name,
    pixels,
    training_steps,
)


def workspace(server: ComfyServer) -> Path:
    return server.folder("user") / "__lifelong"


def test_a_lesson_teaches_model_and_clip(comfyui_server: ComfyServer) -> None:
    workflow = Workflow()
    base = workflow.checkpoint()
    _, model, clip, plot = workflow.lesson(
        base, workflow.folder(PHOTOS), "t_basic", name="lesson", prior_pictures=1, steps=10
    )
    vae = base[2]
    workflow.picture(model, clip, vae, "a photo of embedding:t_basic dog", "learned")
    workflow.picture(*base, "a photo of a dog", "plain")
    workflow.show(plot, "plot")
    result = comfyui_server.run(workflow.graph)
    learned, plain = (latents(comfyui_server, result, name) for name in ("learned", "plain"))
    assert change(learned, plain) > 0.05
    assert pixels(comfyui_server, result, "plot").shape == (1, 432, 768, 3)
    assert training_steps(result, "lesson")[-1] == 10
    assert result.previews, "no preview pictures came"
    assert result.outputs["lesson"]["images"], "the node does not show its loss"


def test_localized_words_are_another_lesson_of_the_same_concept(
    comfyui_server: ComfyServer,
) -> None:
    workflow = Workflow()
    base = workflow.checkpoint()
    photos = workflow.folder(PHOTOS)
    for name, localized, count in (("usual", False, 0), ("localized", True, 4)):
        state, model, clip, _ = workflow.lesson(
            base, photos, "t_words",
            localized_words=localized, token_count=count, prior_pictures=1, steps=10,
        )  # fmt: skip
        prompt = "a photo of a mug and a embedding:t_words dog"
        workflow.picture(model, clip, base[2], prompt, name)
        workflow.node("SaveLifelongState", f"save_{name}", state=state, name=f"t_words_{name}")
    result = comfyui_server.run(workflow.graph)
    usual, localized_words = (
        latents(comfyui_server, result, name) for name in ("usual", "localized")
    )
    assert change(localized_words, usual) > 1e-3
    for name in ("usual", "localized"):
        file = result.outputs[f"save_{name}"]["text"][0].split()[1]
        state = load_state(comfyui_server.folder("output") / "lifelong" / file)
        assert state.records[0].settings["localized_words"] is (name == "localized")
        (vectors,) = state.concepts[0].vectors.values()
        assert len(vectors) == (4 if name == "localized" else 1)


def test_a_lesson_of_cidm_hands_out_the_model_of_its_own_concept(
    comfyui_server: ComfyServer,
) -> None:
    """What elastic weights give a prompt with the new concept, to the bit."""
    workflow = Workflow()
    base = workflow.checkpoint()
    state, *_ = workflow.lesson(base, workflow.folder(PHOTOS), "t_apart_1", method="cidm")
    both, model, clip, _ = workflow.lesson(
        base, workflow.folder("demo_cat"), "t_apart_2", noun="cat", state=state, method="cidm"
    )
    prompt = "a photo of embedding:t_apart_2 cat"
    elastic = workflow.node(
        "ElasticConceptWeights", model=base[0], clip=base[1], state=both, prompt=prompt,
        sharpness=4.0,
    )  # fmt: skip
    workflow.picture(model, clip, base[2], prompt, "handed_out")
    workflow.picture([elastic, 0], [elastic, 1], base[2], prompt, "elastic")
    workflow.picture(*base, "a photo of a cat", "plain")
    result = comfyui_server.run(workflow.graph)
    handed_out, weighted, plain = (
        latents(comfyui_server, result, name) for name in ("handed_out", "elastic", "plain")
    )
    assert np.array_equal(handed_out, weighted)
    assert change(handed_out, plain) > 0.05


def test_stock_models_stay_as_they_were(comfyui_server: ComfyServer) -> None:
    def run(seed: int, *, lesson: bool) -> RunResult:
        workflow = Workflow()
        base = workflow.checkpoint()
        workflow.picture(*base, "a photo of a dog", "untouched", seed=seed)
        if lesson:
            _, model, clip, _ = workflow.lesson(base, workflow.folder(PHOTOS), "t_untouched")
            workflow.picture(model, clip, base[2], "embedding:t_untouched dog", "learned")
        return comfyui_server.run(workflow.graph)

    before = run(5, lesson=False)
    run(6, lesson=True)
    after = run(5, lesson=False)
    assert "sampler untouched" in after.executed, "the second picture came from ComfyUI's cache"
    assert np.array_equal(
        pixels(comfyui_server, before, "untouched"), pixels(comfyui_server, after, "untouched")
    )


def lesson_and_export(token: str, *, steps: int, cached: bool = True) -> Graph:
    """One lesson. With `cached` False another node lies in between, which changes no picture: for
    ComfyUI's own cache the lesson is another one then, for the library it is the same."""
    workflow = Workflow()
    base, photos = workflow.checkpoint(), workflow.folder(PHOTOS)
    if not cached:
        photos = [workflow.node("RepeatImageBatch", image=photos, amount=1), 0]
    state, *_ = workflow.lesson(base, photos, token, name="lesson", steps=steps)
    exported(workflow, state, token)
    return workflow.graph


def test_cancel_within_a_step_and_resume_to_the_same_bits(comfyui_server: ComfyServer) -> None:
    uncancelled = lora_name(comfyui_server.run(lesson_and_export("t_cancel", steps=24)))
    shutil.rmtree(workspace(comfyui_server))
    (comfyui_server.folder("models/loras") / uncancelled).unlink()
    graph = lesson_and_export("t_cancel", steps=24, cached=False)

    seen: list[int] = []
    asked: list[int] = []

    def cancel_at_eight(event: dict[str, Any]) -> None:
        if event["type"] == "progress" and event["data"]["node"] == "lesson":
            seen.append(event["data"]["value"])
            if event["data"]["value"] >= 8 and not asked:
                asked.append(event["data"]["value"])
                comfyui_server.interrupt()

    with pytest.raises(WorkflowError) as caught:
        comfyui_server.run(graph, on_event=cancel_at_eight)
    assert caught.value.kind == "interrupted"
    assert seen[-1] <= asked[0] + 3, "it went on after the cancel"
    assert not (comfyui_server.folder("models/loras") / uncancelled).exists()

    resumed = comfyui_server.run(graph)
    assert training_steps(resumed, "lesson")[0] > 8, "it began again"
    assert lora_name(resumed) == uncancelled


def test_a_finished_lesson_is_taken_from_disk(comfyui_server: ComfyServer) -> None:
    first = comfyui_server.run(lesson_and_export("t_cache", steps=6))
    second = comfyui_server.run(lesson_and_export("t_cache", steps=6, cached=False))
    assert "lesson" in second.executed
    assert training_steps(first, "lesson")[-1] == 6  # ComfyUI leaves out steps that come too fast
    assert len(training_steps(second, "lesson")) <= 1
    assert lora_name(second) == lora_name(first)


def test_pictures_of_several_sizes_are_one_lesson(comfyui_server: ComfyServer) -> None:
    folder = comfyui_server.folder("input") / "t_sizes"
    folder.mkdir()
    for number, size in enumerate([(200, 150), (90, 300), (640, 480)]):
        Image.effect_noise(size, 60).convert("RGB").save(folder / f"{number}.png")
    workflow = Workflow()
    workflow.lesson(workflow.checkpoint(), workflow.folder("t_sizes"), "t_sizes", name="lesson")
    result = comfyui_server.run(workflow.graph)
    assert training_steps(result, "lesson")[-1] == 3
    assert result.executed.count("lesson") == 1


def test_stock_load_image_nodes_and_captions(comfyui_server: ComfyServer) -> None:
    workflow = Workflow()
    images = []
    for number in (1, 2):
        name = f"t_load_{number}.png"
        source = comfyui_server.folder("input") / PHOTOS / f"photo_{number}.png"
        shutil.copyfile(source, comfyui_server.folder("input") / name)
        images.append([workflow.node("LoadImage", image=name), 0])
    batch = {f"images.image{index}": link for index, link in enumerate(images)}
    pictures = [workflow.node("BatchImagesNode", **batch), 0]
    captions = "a photo of embedding:t_load dog on grass\n\nembedding:t_load dog, from the side\n"
    workflow.lesson(workflow.checkpoint(), pictures, "t_load", name="lesson", captions=captions)
    assert training_steps(comfyui_server.run(workflow.graph), "lesson")[-1] == 3


def test_lessons_in_a_row_keep_all_concepts(comfyui_server: ComfyServer) -> None:
    workflow = Workflow()
    base = workflow.checkpoint()
    vae = base[2]
    state, model, clip, _ = workflow.lesson(base, workflow.folder(PHOTOS), "t_first")
    both, model2, clip2, _ = workflow.lesson(
        (model, clip, vae), workflow.folder("demo_cat"), "t_second", noun="cat", state=state
    )
    apart, model3, clip3, _ = workflow.lesson(
        base, workflow.folder("demo_cat"), "t_second", noun="cat", state=state
    )
    prompt = "embedding:t_first dog and embedding:t_second cat"
    workflow.picture(model2, clip2, vae, prompt, "chained")
    workflow.picture(model3, clip3, vae, prompt, "apart")
    workflow.node("SaveLifelongState", "save", state=both, name="t_row")
    result = comfyui_server.run(workflow.graph)
    assert np.array_equal(
        pixels(comfyui_server, result, "chained"), pixels(comfyui_server, result, "apart")
    )
    report = result.outputs["save"]["text"][0]
    assert "embedding:t_first dog" in report and "embedding:t_second cat" in report


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"token": "dog"}, "is a word that the base model already knows"),
        ({"token": "my dog!"}, "cannot be used"),
        ({"token": "../x"}, "cannot be used"),
        ({"noun": "  "}, "class noun"),
        ({"captions": "only one line with embedding:t_bad"}, "captions"),
        ({"captions": "\n".join(["a photo of a dog"] * 5)}, "does not name the concept"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_inputs_are_refused_and_leave_nothing(
    changes: dict[str, str], words: str, comfyui_server: ComfyServer
) -> None:
    before = all_files(comfyui_server)
    workflow = Workflow()
    widgets = {"token": "t_bad", **changes}
    state, *_ = workflow.lesson(workflow.checkpoint(), workflow.folder(PHOTOS), **widgets)
    exported(workflow, state, "t_bad")
    with pytest.raises(WorkflowError, match=words) as caught:
        comfyui_server.run(workflow.graph)
    assert caught.value.kind == "failed"
    assert all_files(comfyui_server) == before


@pytest.mark.parametrize("changes", [{"steps": -1}, {"steps": 10**9}, {"rank": 5000}])
def test_numbers_out_of_range_are_refused_before_the_run(
    changes: dict[str, int], comfyui_server: ComfyServer
) -> None:
    workflow = Workflow()
    workflow.lesson(workflow.checkpoint(), workflow.folder(PHOTOS), "t_range", **changes)
    with pytest.raises(WorkflowError, match=next(iter(changes))) as caught:
        comfyui_server.run(workflow.graph)
    assert caught.value.kind == "refused"


def test_a_model_from_a_lesson_needs_its_state(comfyui_server: ComfyServer) -> None:
    workflow = Workflow()
    base = workflow.checkpoint()
    _, model, clip, _ = workflow.lesson(base, workflow.folder(PHOTOS), "t_lonely")
    workflow.lesson((model, clip, base[2]), workflow.folder("demo_cat"), "t_next", noun="cat")
    with pytest.raises(WorkflowError, match="knows t_lonely, which would be forgotten"):
        comfyui_server.run(workflow.graph)
