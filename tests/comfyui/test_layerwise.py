"""A lesson with layer-wise tokens in a real ComfyUI: the switch, the saved state, the files."""

from __future__ import annotations

import numpy as np
from safetensors.torch import load_file

from lifelong_core.launch.server import ComfyServer
from lifelong_core.sharing import import_lora
from tests.comfyui.graphs import PHOTOS, Workflow, change, exported, latents, lora_name

TOKEN = "t_layers"
PROMPT = f"a photo of embedding:{TOKEN} dog on the beach"


def test_a_saved_lesson_draws_the_same_and_stock_nodes_the_mean(
    comfyui_server: ComfyServer,
) -> None:
    first = Workflow()
    base = first.checkpoint()
    state, model, clip, _ = first.lesson(base, first.folder(PHOTOS), TOKEN, layerwise_tokens=True)
    first.picture(model, clip, base[2], PROMPT, "from_lesson")
    first.node("SaveLifelongState", "save", state=state, name=TOKEN)
    exported(first, state, TOKEN)
    taught = comfyui_server.run(first.graph)
    report = taught.outputs["export"]["text"][0]
    assert f"{TOKEN}.safetensors (the mean of its layers' vectors" in report
    assert "the mean of vectors that differ from layer to layer" in comfyui_server.logs()

    lora = comfyui_server.folder("models/loras") / lora_name(taught)
    (concept,) = import_lora(lora).concepts
    vectors = concept.vectors["clip_l"]
    assert vectors.shape == (10, 1, 128) and len(vectors.flatten(1).unique(dim=0)) == 10
    embedding = load_file(comfyui_server.folder("models/embeddings") / f"{TOKEN}.safetensors")
    assert embedding["emb_params"].shape == (1, 128)

    second = Workflow()
    base = second.checkpoint()
    file = taught.outputs["save"]["text"][0].split()[1]
    loaded = second.node("LoadLifelongState", file=file)
    applied = second.node("ApplyLifelongState", model=base[0], clip=base[1], state=[loaded, 0])
    second.picture([applied, 0], [applied, 1], base[2], PROMPT, "from_state")
    stock = second.node(
        "LoraLoader", model=base[0], clip=base[1], lora_name=lora.name,
        strength_model=1.0, strength_clip=1.0,
    )  # fmt: skip
    second.picture([stock, 0], [stock, 1], base[2], PROMPT, "from_files")
    drawn = comfyui_server.run(second.graph)
    lesson = latents(comfyui_server, taught, "from_lesson")
    assert np.array_equal(latents(comfyui_server, drawn, "from_state"), lesson)
    assert change(latents(comfyui_server, drawn, "from_files"), lesson) > 1e-2
