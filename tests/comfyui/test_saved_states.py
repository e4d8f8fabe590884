"""What a lesson taught, as files: the same pictures through the stock nodes and our own."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lifelong_core.backbone import random_backbone, save_single_file
from lifelong_core.errors import WorkflowError
from lifelong_core.launch.client import RunResult
from lifelong_core.launch.server import ComfyServer
from tests.comfyui.graphs import (
    PHOTOS,
    Workflow,
    all_files,
    change,
    exported,
    latents,
    lora_name,
    pixels,
)

TOKEN = "t_saved"
PROMPT = f"a photo of embedding:{TOKEN} dog on the beach"


@pytest.fixture(scope="module")
def taught(comfyui_server: ComfyServer) -> RunResult:
    """A lesson, its picture, the state file, the LoRA and the embedding."""
    workflow = Workflow()
    base = workflow.checkpoint()
    state, model, clip, plot = workflow.lesson(
        base, workflow.folder(PHOTOS), TOKEN, train_text_encoder=True
    )
    workflow.picture(model, clip, base[2], PROMPT, "from_node")
    workflow.picture(*base, "a photo of a dog on the beach", "plain")
    workflow.node("SaveLifelongState", "save", state=state, name=TOKEN)
    workflow.node("ExportLifelongLora", "export", state=state, name=TOKEN, preview=plot)
    return comfyui_server.run(workflow.graph)


def state_name(result: RunResult) -> str:
    found = re.search(r"\S+\.lifelong\.safetensors", result.outputs["save"]["text"][0])
    assert found is not None
    return found[0]


@pytest.fixture(scope="module")
def other_base(comfyui_server: ComfyServer) -> str:
    """A second demo checkpoint with other weights."""
    name = "t_other_base.safetensors"
    path = comfyui_server.folder("models/checkpoints") / name
    save_single_file(random_backbone("demo", seed=77), path)
    return name


def test_the_stock_nodes_draw_the_same_picture_from_the_files(
    comfyui_server: ComfyServer, taught: RunResult
) -> None:
    workflow = Workflow()
    model, clip, vae = workflow.checkpoint()
    lora = workflow.node(
        "LoraLoader", model=model, clip=clip, lora_name=lora_name(taught),
        strength_model=1.0, strength_clip=1.0,
    )  # fmt: skip
    workflow.picture([lora, 0], [lora, 1], vae, PROMPT, "from_files")
    before = len(comfyui_server.logs())
    result = comfyui_server.run(workflow.graph)
    shown = [
        pixels(comfyui_server, result, "from_files"),
        pixels(comfyui_server, taught, "from_node"),
    ]
    assert np.abs(shown[0] - shown[1]).max() <= 2
    from_files = latents(comfyui_server, result, "from_files")
    from_node = latents(comfyui_server, taught, "from_node")
    assert change(from_files, from_node) < 1e-3
    assert change(latents(comfyui_server, taught, "plain"), from_node) > 0.05
    log = comfyui_server.logs()[before:]
    assert "not loaded" not in log.lower() and "does not exist" not in log


def test_a_saved_state_loads_and_applies(comfyui_server: ComfyServer, taught: RunResult) -> None:
    workflow = Workflow()
    model, clip, vae = workflow.checkpoint()
    loaded = workflow.node("LoadLifelongState", file=state_name(taught))
    applied = workflow.node("ApplyLifelongState", model=model, clip=clip, state=[loaded, 0])
    workflow.picture([applied, 0], [applied, 1], vae, PROMPT, "applied")
    result = comfyui_server.run(workflow.graph)
    assert np.array_equal(
        pixels(comfyui_server, result, "applied"), pixels(comfyui_server, taught, "from_node")
    )


def test_saving_again_writes_no_second_file(comfyui_server: ComfyServer, taught: RunResult) -> None:
    before = all_files(comfyui_server)
    workflow = Workflow()
    loaded = workflow.node("LoadLifelongState", file=state_name(taught))
    workflow.node("SaveLifelongState", "save", state=[loaded, 0], name=TOKEN)
    exported(workflow, [loaded, 0], TOKEN)
    result = comfyui_server.run(workflow.graph)
    assert state_name(result) == state_name(taught)
    assert lora_name(result) == lora_name(taught)
    assert all_files(comfyui_server) == before


def test_a_state_of_another_base_is_refused(
    comfyui_server: ComfyServer, taught: RunResult, other_base: str
) -> None:
    for use in ("learn", "apply"):
        workflow = Workflow()
        base = workflow.checkpoint(other_base)
        state = [workflow.node("LoadLifelongState", file=state_name(taught)), 0]
        if use == "learn":
            workflow.lesson(
                base, workflow.folder("demo_cat"), "t_other", state=state, train_text_encoder=True
            )
        else:
            applied = workflow.node("ApplyLifelongState", model=base[0], clip=base[1], state=state)
            workflow.picture([applied, 0], [applied, 1], base[2], PROMPT, "never")
        with pytest.raises(WorkflowError, match="fingerprint") as caught:
            comfyui_server.run(workflow.graph)
        assert caught.value.kind == "failed"


def test_a_lesson_with_another_adapter_than_the_states_is_refused(
    comfyui_server: ComfyServer, taught: RunResult
) -> None:
    workflow = Workflow()
    state = [workflow.node("LoadLifelongState", file=state_name(taught)), 0]
    workflow.lesson(
        workflow.checkpoint(), workflow.folder("demo_cat"), "t_rank", state=state, rank=8
    )
    with pytest.raises(WorkflowError, match="rank 8"):
        comfyui_server.run(workflow.graph)


def test_a_foreign_embedding_is_left_alone(comfyui_server: ComfyServer, taught: RunResult) -> None:
    path = comfyui_server.folder("models/embeddings") / f"{TOKEN}.safetensors"
    ours = load_file(path)
    foreign = {"emb_params": torch.full((1, 128), 0.5)}
    try:
        save_file(foreign, path)
        before = all_files(comfyui_server)
        workflow = Workflow()
        loaded = workflow.node("LoadLifelongState", file=state_name(taught))
        exported(workflow, [loaded, 0], "t_foreign")
        with pytest.raises(WorkflowError, match="exists in .* with other content"):
            comfyui_server.run(workflow.graph)
        assert all_files(comfyui_server) == before
        assert torch.equal(load_file(path)["emb_params"], foreign["emb_params"])

        workflow.graph["export"]["inputs"]["replace_embeddings"] = True
        comfyui_server.run(workflow.graph)
        assert torch.equal(load_file(path)["emb_params"], ours["emb_params"])
    finally:
        save_file(ours, path)


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "/tmp/evil", "x" * 65, "con"])
@pytest.mark.parametrize("kind", ["SaveLifelongState", "ExportLifelongLora"])
def test_names_that_leave_the_folder_are_refused(
    kind: str, name: str, comfyui_server: ComfyServer, taught: RunResult
) -> None:
    before = all_files(comfyui_server)
    workflow = Workflow()
    loaded = workflow.node("LoadLifelongState", file=state_name(taught))
    workflow.node(kind, state=[loaded, 0], name=name)
    with pytest.raises(WorkflowError, match="InputError"):
        comfyui_server.run(workflow.graph)
    assert all_files(comfyui_server) == before


@pytest.mark.parametrize("file", ["../../secret.lifelong.safetensors", "nothing", ""])
def test_files_outside_the_list_are_refused(
    file: str, comfyui_server: ComfyServer, taught: RunResult
) -> None:
    workflow = Workflow()
    loaded = workflow.node("LoadLifelongState", file=file)
    workflow.node("SaveLifelongState", state=[loaded, 0], name="t_never")
    with pytest.raises(WorkflowError) as caught:
        comfyui_server.run(workflow.graph)
    assert caught.value.kind == "refused"


def test_a_damaged_state_is_refused(comfyui_server: ComfyServer, taught: RunResult) -> None:
    folder = comfyui_server.folder("output/lifelong")
    whole = (folder / state_name(taught)).read_bytes()
    damaged: Path = folder / "t_damaged.lifelong.safetensors"
    damaged.write_bytes(whole[:-100])
    workflow = Workflow()
    loaded = workflow.node("LoadLifelongState", file=damaged.name)
    workflow.node("SaveLifelongState", state=[loaded, 0], name="t_never")
    with pytest.raises(WorkflowError, match=re.escape(damaged.name)):
        comfyui_server.run(workflow.graph)
    damaged.unlink()


def test_an_unwritable_folder_is_reported(comfyui_server: ComfyServer, taught: RunResult) -> None:
    """A file in the folder's place: unlike missing rights, it stops an administrator too."""
    folder = comfyui_server.folder("models/loras")
    aside = folder.rename(folder.with_name("loras_aside"))
    try:
        folder.write_text("")
        workflow = Workflow()
        loaded = workflow.node("LoadLifelongState", file=state_name(taught))
        exported(workflow, [loaded, 0], "t_unwritable")
        with pytest.raises(WorkflowError, match="Could not write"):
            comfyui_server.run(workflow.graph)
        assert folder.read_text() == ""
    finally:
        folder.unlink()
        aside.rename(folder)
