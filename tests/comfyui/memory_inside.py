"""Runs inside ComfyUI's own process: CLIP_VISION as a feature model, and the bank's picture."""

from __future__ import annotations

import importlib
from typing import Any

from inside import pack, torch

clip_vision_module = importlib.import_module("comfy.clip_vision")

CONFIG = {
    "hidden_act": "quick_gelu", "hidden_size": 32, "image_size": 32, "intermediate_size": 64,
    "model_type": "clip_vision_model", "num_attention_heads": 2, "num_channels": 3,
    "num_hidden_layers": 2, "patch_size": 8, "projection_dim": 16,
}  # fmt: skip


def clip_vision(seed: int, dtype: torch.dtype = torch.float32) -> Any:
    """A small CLIP_VISION with random weights, as inference tensors like a loader's."""
    with torch.inference_mode():
        model = clip_vision_module.ClipVisionModel(CONFIG)
        draw = torch.Generator().manual_seed(seed)
        for value in model.get_sd().values():
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=draw) * 0.1)
        model.model.to(dtype)
    return model


def features(model: Any) -> Any:
    return pack("nodes.clip_vision").ClipVisionFeatures(model)


def check_clip_vision_gives_its_image_embeddings() -> None:
    model = clip_vision(0)
    images = torch.rand(3, 3, 48, 48)
    found = features(model).encode(images)
    with torch.inference_mode():
        wanted = model.encode_image(images.movedim(1, -1)).image_embeds
    assert found.shape == (3, 16) and not found.is_inference()
    assert torch.equal(found, wanted.float())
    unit = pack("lifelong_core.memory.features").directions(features(model), images)
    assert torch.allclose(unit.norm(dim=1), torch.ones(3))


def check_clip_vision_is_known_by_its_weights_in_every_number_format() -> None:
    names = {features(clip_vision(seed)).fingerprint for seed in (0, 0, 1)}
    assert len(names) == 2
    assert features(clip_vision(0, torch.float16)).fingerprint in names
    assert all(name.startswith("clip_vision:") for name in names)


def recollection(tokens: list[str], rows: int, per_row: int) -> Any:
    memory = pack("lifelong_core.memory")
    anchors = tuple(
        pack("lifelong_core.memory.candidates").Anchor(
            index, token, number, torch.ones(2), f"embedding:{token}"
        )
        for index, token in enumerate(tokens)
        for number in range(rows)
    )
    count = len(anchors) * per_row
    chosen = torch.arange(len(anchors)) * per_row + 1
    bank = memory.ShortTermMemory(
        torch.rand(len(anchors), 3, 8, 8),
        tuple(anchor.prompt for anchor in anchors),
        tuple(anchor.concept for anchor in anchors),
    )
    thumbnails = torch.zeros(count, 3, 96, 96, dtype=torch.uint8)
    scores = torch.rand(len(anchors), count)
    return memory.Recollection(bank, anchors, thumbnails, scores, chosen)


def check_the_picture_frames_what_is_kept_and_pales_the_rest() -> None:
    picture = pack("nodes.memory_picture")
    shown = picture.memory_picture(recollection(["one", "two"], rows=2, per_row=3))
    top, left = picture.TOP + picture.LABEL, picture.LEFT
    middle = picture.CELL // 2
    pale, kept = (
        shown[0, top + middle, left + column * (picture.CELL + picture.GAP) + middle]
        for column in (0, 1)
    )
    assert float(kept.max()) == 0.0 and float(pale.min()) > 0.5
    frame = shown[0, top - 2, left + picture.CELL + picture.GAP + middle] * 255
    assert tuple(frame.round().int().tolist()) == picture.KEPT


def check_many_concepts_do_not_make_the_picture_endless() -> None:
    picture = pack("nodes.memory_picture")
    many = picture.memory_picture(recollection([f"t_{n}" for n in range(40)], 5, 8))
    most = picture.memory_picture(recollection([f"t_{n}" for n in range(12)], 5, 8))
    assert many.shape == most.shape
