"""Extractors by name: the world's own, and any open_clip model with its weights on disk."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import timm
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
        model = open_clip.create_model("lifelong-tiny")
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


DINO, INCEPTION = "vit_small_patch16_224.dino", "inception_v3.tv_in1k"


@pytest.fixture(scope="module", params=[DINO, INCEPTION])
def network(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, torch.nn.Module]:
    """A network of timm with random weights and their file, as the publishers' files have them:
    DINO's without a head, Inception's with one and with what only training needs."""
    with torch.random.fork_rng(devices=[]):
        model = timm.create_model(request.param).eval()
    weights = dict(model.state_dict())
    if request.param == INCEPTION:
        weights["AuxLogits.conv0.conv.weight"] = torch.ones(128, 768, 1, 1)
    path = tmp_path_factory.mktemp("timm") / "weights.pth"
    torch.save(weights, path)
    return request.param, path, model


def test_dino_and_inception_are_read_from_their_files(
    network: tuple[str, Path, torch.nn.Module],
) -> None:
    name, path, model = network
    before = torch.random.get_rng_state()
    found = extractor_named(f"{name}={path}")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert found.name == f"timm {name}" and found.texts is None
    size = 299 if name == INCEPTION else 224
    pictures = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    features = found.images(pictures)
    mean, spread = (torch.tensor(model.pretrained_cfg[key]) for key in ("mean", "std"))
    normalised = (pictures - mean.view(3, 1, 1)) / spread.view(3, 1, 1)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(normalised), pre_logits=True)
    assert features.shape == (2, 2048 if name == INCEPTION else 384)
    if name == DINO:  # The class token, of length √D.
        expected = torch.nn.functional.normalize(expected, dim=-1) * 384**0.5
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)


def test_weights_of_another_network_are_refused(
    network: tuple[str, Path, torch.nn.Module], tmp_path: Path
) -> None:
    name, path, _ = network
    weights = torch.load(path, weights_only=True)
    weights.pop("norm.weight" if name == DINO else "Mixed_7c.branch_pool.bn.weight")
    torch.save(weights, tmp_path / "cut.pth")
    with pytest.raises(ModelError, match="cut.pth holds no weights.*1 are missing"):
        extractor_named(f"{name}={tmp_path / 'cut.pth'}")
    if name == INCEPTION:
        weights["fc.weight"] = torch.ones(1008, 2048)
        torch.save(weights, tmp_path / "fid.pth")
        with pytest.raises(ModelError, match="another network, with 1008 classes for 1000"):
            extractor_named(f"{name}={tmp_path / 'fid.pth'}")


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
