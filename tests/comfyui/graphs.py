"""Workflows in API form for the tests, put together from a few pieces, and what to read off."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from lifelong_core.launch.client import RunResult
from lifelong_core.launch.pack import CHECKPOINT
from lifelong_core.launch.server import ComfyServer

Graph = dict[str, Any]
Link = list[Any]

PHOTOS = "demo_dog"
QUICK = {
    "steps": 3,
    "batch_size": 1,
    "prior_pictures": 0,
    "learning_rate": 0.5,
    "token_learning_rate": 0.5,
}
"""A lesson of seconds that still changes the pictures visibly."""

QUICK_CONSOLIDATION = {
    "classifier_terms": True,
    "subset": 3,
    "delta": 0.5,
    "gamma": 0.1,
    "distillation_weight": 1.5,
    "temperature": 1.0,
    "batch_size": 1,
    "distillation_iterations": 2,
    "fisher_iterations": 2,
}


class Workflow:
    """Nodes by id; every method adds some and returns the links to what they give."""

    def __init__(self) -> None:
        self.graph: Graph = {}

    def node(self, kind: str, key: str | None = None, /, **inputs: Any) -> str:
        key = key or str(len(self.graph) + 1)
        given = {name: value for name, value in inputs.items() if value is not None}
        self.graph[key] = {"class_type": kind, "inputs": given}
        return key

    def checkpoint(self, file: str = CHECKPOINT) -> tuple[Link, Link, Link]:
        """MODEL, CLIP, VAE."""
        key = self.node("CheckpointLoaderSimple", ckpt_name=file)
        return [key, 0], [key, 1], [key, 2]

    def folder(self, name: str) -> Link:
        """The pictures of a folder in input/, as a list."""
        return [self.node("LoadImageDataSetFromFolder", folder=name), 0]

    def lesson(
        self,
        base: tuple[Link, Link, Link],
        images: Link,
        token: str,
        *,
        noun: str = "dog",
        name: str | None = None,
        state: Link | None = None,
        **widgets: Any,
    ) -> tuple[Link, Link, Link, Link]:
        """LIFELONG_STATE, MODEL, CLIP, loss plot."""
        model, clip, vae = base
        values = {"method": "lora", "rank": 4, "seed": 1, **QUICK, **widgets}
        key = self.node(
            "LearnConceptTask", name, model=model, clip=clip, vae=vae, images=images, state=state,
            token=token, noun=noun, **values,
        )  # fmt: skip
        return [key, 0], [key, 1], [key, 2], [key, 3]

    def consolidation(
        self,
        learned: Sequence[Link],
        vae: Link,
        images: Link,
        *,
        name: str | None = None,
        **widgets: Any,
    ) -> tuple[Link, Link, Link, Link]:
        """LIFELONG_STATE, MODEL, CLIP, report; `learned`: what `lesson` or this gave."""
        state, model, clip = learned[:3]
        values = {"phases": "DSC, then Fisher", "seed": 1, **QUICK_CONSOLIDATION, **widgets}
        key = self.node(
            "ConsolidateEWC-DC", name, state=state, model=model, clip=clip, vae=vae,
            images=images, **values,
        )  # fmt: skip
        return [key, 0], [key, 1], [key, 2], [key, 3]

    def picture(
        self, model: Link, clip: Link, vae: Link, prompt: str, name: str, *, seed: int = 5
    ) -> str:
        """A picture saved as `<name>_…`, for `pixels`, and its latents, for `latents`."""
        texts = [self.node("CLIPTextEncode", clip=clip, text=text) for text in (prompt, "")]
        empty = self.node("EmptyLatentImage", width=128, height=128, batch_size=1)
        latent = self.node(
            "KSampler", f"sampler {name}", model=model, positive=[texts[0], 0],
            negative=[texts[1], 0], latent_image=[empty, 0], seed=seed, steps=4, cfg=5.0,
            sampler_name="dpmpp_2m", scheduler="karras", denoise=1.0,
        )  # fmt: skip
        self.node("SaveLatent", f"latents {name}", samples=[latent, 0], filename_prefix=name)
        return self.show([self.node("VAEDecode", samples=[latent, 0], vae=vae), 0], name)

    def show(self, images: Link, name: str) -> str:
        """Save pictures as `<name>_…`; returns the SaveImage node."""
        return self.node("SaveImage", name, images=images, filename_prefix=name)


def pixels(server: ComfyServer, result: RunResult, node: str) -> np.ndarray:
    """The pictures that a SaveImage node wrote, as integers [B, H, W, 3]."""
    entries = result.outputs[node]["images"]
    paths = [server.base / e["type"] / e["subfolder"] / e["filename"] for e in entries]
    return np.stack([np.asarray(Image.open(path), dtype=np.int16) for path in paths])


def latents(server: ComfyServer, result: RunResult, name: str) -> np.ndarray:
    """What a picture was decoded from. With random weights the VAE hides most of a difference."""
    entry = result.outputs[f"latents {name}"]["latents"][0]
    path = server.base / entry["type"] / entry["subfolder"] / entry["filename"]
    return load_file(path)["latent_tensor"]


def change(new: np.ndarray, old: np.ndarray) -> float:
    """The difference of two arrays, relative to the second."""
    return float(np.linalg.norm(new - old) / np.linalg.norm(old))


def training_steps(result: RunResult, node: str) -> list[int]:
    """The steps that a node reported to the progress bar."""
    return [
        event["data"]["value"]
        for event in result.events
        if event["type"] == "progress" and event["data"]["node"] == node
    ]


def exported(workflow: Workflow, state: list[Any], name: str) -> str:
    return workflow.node("ExportLifelongLora", "export", state=state, name=name)


def lora_name(result: RunResult) -> str:
    """The exported file; its name holds a hash of its content."""
    text: str = result.outputs["export"]["text"][0]
    return next(word for word in text.split() if word.endswith(".safetensors"))


def all_files(server: ComfyServer) -> set[Path]:
    """Files that a lesson or an export could leave, half-written ones included."""
    places = ("models", "output", "user/__lifelong")
    return {path for place in places for path in server.folder(place).rglob("*") if path.is_file()}
