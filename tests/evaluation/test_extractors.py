"""Extractors by name: the world's own, and any open_clip model with its weights on disk."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from lifelong_core.errors import InputError, ModelError
from lifelong_core.evaluation import extractors as module
from lifelong_core.evaluation.extractors import extractor_named
from lifelong_core.world.clip import WorldClip, new_clip

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A model of open_clip that is small enough for a test, and its weights."""
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "lifelong-tiny.json").write_text(json.dumps(TINY), encoding="utf-8")
    open_clip.add_model_config(folder)
    with torch.random.fork_rng(devices=[]):
        model = open_clip.create_model("lifelong-tiny", load_weights=False)
    path = folder / "tiny.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return "lifelong-tiny", path


def test_an_open_clip_model_is_read_from_its_file(tiny: tuple[str, Path]) -> None:
    name, path = tiny
    before = torch.random.get_rng_state()
    first, again = extractor_named(f"{name}={path}"), extractor_named(f"{name}={path}")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.name == "open_clip lifelong-tiny"
    pictures = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    features = first.images(pictures)
    assert torch.equal(features, again.images(pictures))
    assert torch.allclose(features.norm(dim=1), torch.tensor(4.0))
    named, plain = first.texts(["a photo of a embedding:x dog", "a photo of a dog"])
    assert torch.allclose(named, plain)


def test_the_worlds_clip_gives_features_of_length_root_d(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_world_clip", lambda: WorldClip(new_clip()))
    world = extractor_named("world_clip")
    assert torch.allclose(world.images(torch.rand(1, 3, 64, 64)).norm(), torch.tensor(128**0.5))
    assert world.texts(["a dog"]).shape == (1, 128)


def test_unknown_models_and_missing_or_wrong_weights_are_refused(
    tiny: tuple[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="world_clip"):
        extractor_named("clip")
    with pytest.raises(InputError, match="unknown"):
        extractor_named(f"no-such-model={tiny[1]}")
    with pytest.raises(ModelError, match="are not at"):
        extractor_named(f"{tiny[0]}={tmp_path / 'missing.pt'}")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing of use")
    with pytest.raises(ModelError, match="holds no weights"):
        extractor_named(f"{tiny[0]}={broken}")
