"""What ComfyUI's own samplers draw with the demo model, read by the judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lifelong_core.backbone.families import FAMILIES
from lifelong_core.images import load_images
from lifelong_core.launch import comfyui
from lifelong_core.launch.console import say
from lifelong_core.launch.pack import CHECKPOINT, prepare_base
from lifelong_core.launch.server import ComfyServer
from lifelong_core.world.asked import Asked
from lifelong_core.world.evaluate import accuracy
from lifelong_core.world.judge import Judge

SAMPLERS = {"euler": "normal", "dpmpp_2m": "karras", "ddim": "ddim_uniform"}
"""With the scheduler that each is mostly used with."""
DEMO = FAMILIES["demo"]
TIMEOUT = 3600.0


def measure_samplers(
    judge: Judge, asked: Sequence[Asked], base: Path, *, steps: int, seed: int
) -> dict[str, dict[str, float]]:
    """Sampler -> accuracies over the prompts, drawn by a real ComfyUI in folder `base`."""
    prepare_base(base)
    found = {}
    with ComfyServer(comfyui.require(), base) as server:
        for sampler in SAMPLERS:
            say(f"ComfyUI draws {len(asked)} pictures with {sampler}.")
            graph = workflow(asked, sampler, steps=steps, seed=seed)
            images = pictures(server, graph, len(asked))
            found[sampler] = accuracy(judge, images, asked)
    return found


def workflow(asked: Sequence[Asked], sampler: str, *, steps: int, seed: int) -> dict[str, Any]:
    """API form: one picture per prompt, each from a seed of its own."""
    size = DEMO.default_size
    graph: dict[str, Any] = {
        "model": _node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "empty": _node("EmptyLatentImage", width=size, height=size, batch_size=1),
        "negative": _node("CLIPTextEncode", clip=["model", 1], text=""),
    }
    for number, one in enumerate(asked):
        graph[f"text{number}"] = _node("CLIPTextEncode", clip=["model", 1], text=one.prompt)
        graph[f"latent{number}"] = _node(
            "KSampler",
            model=["model", 0],
            positive=[f"text{number}", 0],
            negative=["negative", 0],
            latent_image=["empty", 0],
            seed=seed + number,
            steps=steps,
            cfg=DEMO.guidance,
            sampler_name=sampler,
            scheduler=SAMPLERS[sampler],
            denoise=1.0,
        )
        graph[f"image{number}"] = _node(
            "VAEDecode", samples=[f"latent{number}", 0], vae=["model", 2]
        )
        graph[f"save{number}"] = _node(
            "SaveImage", images=[f"image{number}", 0], filename_prefix=f"{sampler}_{number:04d}"
        )
    return graph


def pictures(server: ComfyServer, graph: dict[str, Any], count: int) -> Tensor:
    """[count, 3, H, W] in [0, 1], in the order of the prompts."""
    result = server.run(graph, TIMEOUT)
    files = [path for n in range(count) for path in server.files(result, f"save{n}")]
    return torch.stack(load_images(files))


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}
