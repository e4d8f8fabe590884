"""Runs inside ComfyUI's own process: guidance of models that ComfyUI loads dynamically.

That loading needs an NVIDIA GPU. What the node does with such a MODEL does not: ComfyUI reads a
second copy of the file, here on the CPU, in the way that it does while its dynamic loading is on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any
from unittest.mock import patch

from guidance_helpers import PROMPT, conditioning, distance, guided, sampled
from inside import WORK, comfy, loaded, pack, torch
from safetensors.torch import load_file, save_file

# What follows can be imported once inside.py has set ComfyUI up.
# isort: split
import comfy.memory_management

HALF = "half"


def half_checkpoint() -> None:
    """The checkpoint in fp16, which ComfyUI runs in fp32 on a CPU."""
    path = WORK / f"{HALF}.safetensors"
    if not path.exists():
        weights = load_file(WORK / "base.safetensors")
        save_file({name: weight.half() for name, weight in weights.items()}, path)


def read(path: str) -> tuple[dict[str, torch.Tensor], Any]:
    """As ComfyUI's own reader for dynamic loading, without a map of the GPU's."""
    return load_file(path), {}


@contextmanager
def dynamic_loading() -> Iterator[None]:
    with (
        patch.object(comfy.memory_management, "aimdo_enabled", True),
        patch.object(comfy.utils, "load_safetensors", read),
    ):
        yield


def dynamic_model() -> tuple[Any, Any]:
    """MODEL and CLIP; MODEL counts as loaded dynamically."""
    half_checkpoint()
    model, clip, _ = loaded(HALF)
    patcher = comfy.model_patcher.ModelPatcherDynamic
    model.is_dynamic = lambda: True
    model.non_dynamic_delegate_model = None
    model.get_non_dynamic_delegate = MethodType(patcher.get_non_dynamic_delegate, model)
    return model, clip


def check_a_dynamically_loaded_model_is_guided_as_any_other() -> None:
    half_checkpoint()
    usual, clip, _ = loaded(HALF)
    positive, negative = conditioning(clip, PROMPT), conditioning(clip, "")
    plain = sampled(usual, positive, negative)
    expected = sampled(guided(usual, clip), positive, negative)
    assert distance(expected, plain) > 1e-3
    model, clip = dynamic_model()
    with dynamic_loading():
        first, second = guided(model, clip), guided(model, clip)
    assert first.model is second.model and first.model is not model.model
    assert torch.equal(sampled(first, positive, negative), expected)
    assert torch.equal(sampled(model, positive, negative), plain)


def check_a_model_that_cannot_be_loaded_again_is_refused() -> None:
    model, clip = dynamic_model()
    model.cached_patcher_init = None
    error = pack("lifelong_core.errors").ModelError
    try:
        guided(model, clip)
    except error as refused:
        assert "--disable-dynamic-vram" in str(refused)
    else:
        raise AssertionError("nothing was raised")
