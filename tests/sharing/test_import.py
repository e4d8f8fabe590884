"""LoRA files read back: our own exactly, other programs' as far as adapters can hold them."""

from __future__ import annotations

import base64
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong_core.adapters.spec import AdapterSpec
from lifelong_core.errors import FileError, ModelError, StateError
from lifelong_core.files import content_hash, load_tensors, save_tensors
from lifelong_core.seeding import generator
from lifelong_core.sharing import ExportInfo, ImportedLora, export_lora, import_lora
from lifelong_core.sharing.naming import kohya_name, layers
from lifelong_core.state import LifelongState

BLOCK = "unet.mid_block.attentions.0.transformer_blocks.0"


def deltas(adapter: dict[str, Tensor], spec: AdapterSpec) -> dict[str, Tensor]:
    names = dict.fromkeys(key.rsplit(".", 1)[0] for key in adapter)
    return {name: spec.scale * (adapter[f"{name}.up"] @ adapter[f"{name}.down"]) for name in names}


def there_and_back(state: LifelongState, folder: Path, **options: bool) -> ImportedLora:
    info = ExportInfo("v_prediction")
    return import_lora(export_lora(state, folder, folder / "e", "x", info=info, **options).lora)


def plain(
    path: Path, family: str, wanted: dict[str, tuple[int, float | None]], first: bool = True
) -> dict[str, Tensor]:
    """A file as other programs write it: layer -> (rank, alpha). Returns what it adds per layer."""
    tensors, added = {}, {}
    for layer, (rank, alpha) in wanted.items():
        out, width = layers(family)[layer]
        random = generator(0, layer)
        down, up = (
            torch.randn(*shape, generator=random).half() for shape in ((rank, width), (out, rank))
        )
        name = kohya_name(layer, family)
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
        scale = 1.0 if alpha is None else alpha / rank
        added[layer] = scale * (up.float() @ down.float())
    save_tensors(path, tensors, {"ss_network_module": "networks.lora"})
    return added


@pytest.mark.parametrize("bundle", [False, True])
@pytest.mark.parametrize(
    ("family", "spec"),
    [
        ("demo", AdapterSpec(rank=16, alpha=16)),
        ("demo", AdapterSpec(rank=3, alpha=0.1, targets=("attn1.to_out.0",), text_encoder=True)),
        ("sd1", AdapterSpec(rank=1, alpha=1, text_encoder=True)),
        ("sd2", AdapterSpec(rank=2, alpha=7, targets=("attn2.to_q",))),
        ("sdxl", AdapterSpec(rank=1, alpha=2, targets=("attn2.to_v",), text_encoder=True)),
    ],
)
def test_our_own_files_come_back_exactly(
    make_state, tmp_path: Path, family: str, spec: AdapterSpec, bundle: bool
) -> None:
    state = make_state(family, spec)
    imported = there_and_back(state, tmp_path, bundle=bundle)
    assert (imported.family, imported.spec, imported.skipped) == (family, spec, ())
    assert imported.base_fingerprint == state.base_fingerprint
    assert imported.adapter.keys() == state.adapter.keys()
    assert all(torch.equal(imported.adapter[key], state.adapter[key]) for key in state.adapter)
    assert [(c.token, c.noun) for c in imported.concepts] == [
        (c.token, c.noun) for c in state.concepts
    ]
    for mine, theirs in zip(state.concepts, imported.concepts, strict=True):
        assert mine.vectors.keys() == theirs.vectors.keys()
        assert all(torch.equal(mine.vectors[key], theirs.vectors[key]) for key in mine.vectors)


def test_imported_weights_go_into_an_adapter(make_state, tmp_path: Path) -> None:
    from lifelong_core.adapters import build_adapter
    from lifelong_core.backbone import random_backbone

    state = make_state(spec=AdapterSpec(rank=2, alpha=6.0, text_encoder=True))
    imported = there_and_back(state, tmp_path)
    adapter = build_adapter(imported.spec, random_backbone("demo"), seed=0)
    adapter.load(imported.adapter)
    for key, delta in adapter.deltas().items():
        expected = 3.0 * (state.adapter[f"{key}.up"] @ state.adapter[f"{key}.down"])
        assert torch.allclose(delta, expected, atol=1e-5)


def test_layers_of_different_rank_add_the_same(tmp_path: Path) -> None:
    wanted = {f"{BLOCK}.attn2.to_k": (2, 1.0), f"{BLOCK}.attn2.to_v": (5, None)}
    added = plain(tmp_path / "a.safetensors", "demo", wanted)
    imported = import_lora(tmp_path / "a.safetensors")
    assert imported.family == "demo" and imported.base_fingerprint is None
    assert imported.spec == AdapterSpec(rank=5, alpha=5.0)
    now = deltas(imported.adapter, imported.spec)
    assert now.keys() > added.keys()
    for layer, delta in now.items():
        expected = added.get(layer, torch.zeros_like(delta))
        assert torch.allclose(delta, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, -2.0])
def test_alpha_without_a_positive_value(tmp_path: Path, alpha: float) -> None:
    added = plain(tmp_path / "a.safetensors", "demo", {f"{BLOCK}.attn2.to_k": (2, alpha)})
    imported = import_lora(tmp_path / "a.safetensors")
    now = deltas(imported.adapter, imported.spec)
    assert torch.allclose(now[f"{BLOCK}.attn2.to_k"], added[f"{BLOCK}.attn2.to_k"], atol=1e-4)


@pytest.mark.parametrize("family", ["demo", "sd1", "sd2", "sdxl"])
def test_family_shows_in_the_layers(tmp_path: Path, family: str) -> None:
    plain(tmp_path / "a.safetensors", family, {f"{BLOCK}.attn2.to_k": (1, 1.0)})
    assert import_lora(tmp_path / "a.safetensors").family == family


def test_families_with_equal_layers_must_be_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    plain(path, "sd1", {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (1, 1)})
    with pytest.raises(StateError, match="sd1 and sd2"):
        import_lora(path)
    assert import_lora(path, "sd2").family == "sd2"


def test_original_block_names(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k"
    added = plain(path, "sdxl", {layer: (2, 2.0)})
    tensors, _ = load_tensors(path)
    old, new = "down_blocks_1_attentions_0", "input_blocks_4_1"
    save_tensors(path, {key.replace(old, new): value for key, value in tensors.items()})
    imported = import_lora(path)
    assert torch.allclose(deltas(imported.adapter, imported.spec)[layer], added[layer], atol=1e-4)


def test_layers_that_adapters_do_not_change_are_named(tmp_path: Path, caplog) -> None:
    path = tmp_path / "a.safetensors"
    plain(path, "demo", {f"{BLOCK}.attn2.to_k": (1, 1.0), f"{BLOCK}.attn2.to_v": (1, 1.0)})
    tensors, _ = load_tensors(path)
    feed_forward = "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2"
    tensors |= {
        f"{feed_forward}.lora_down.weight": torch.ones(1, 768),
        f"{feed_forward}.lora_up.weight": torch.ones(192, 1),
        f"{kohya_name(f'{BLOCK}.attn2.to_v', 'demo')}.dora_scale": torch.ones(192, 1),
        "bundle_emb.stranger.string_to_param.*": torch.ones(1, 128),
    }
    save_tensors(path, tensors)
    with caplog.at_level(logging.WARNING):
        imported = import_lora(path)
    assert set(imported.skipped) == {
        feed_forward, kohya_name(f"{BLOCK}.attn2.to_v", "demo"), "stranger"
    }  # fmt: skip
    assert imported.spec.targets == ("attn2.to_k",)
    assert "3 layers or embeddings" in caplog.text


def test_the_wrong_family_is_refused(make_state, tmp_path: Path) -> None:
    info = ExportInfo("v_prediction")
    path = export_lora(make_state(), tmp_path, tmp_path / "e", "x", info=info).lora
    with pytest.raises(StateError, match="for demo models, not for a sd1"):
        import_lora(path, "sd1")
    plain(path, "demo", {f"{BLOCK}.attn2.to_k": (1, 1.0)})
    with pytest.raises(StateError, match="None of the 1 LoRA layers .* fits a sd1 model"):
        import_lora(path, "sd1")
    with pytest.raises(ModelError, match="flux"):
        import_lora(path, "flux")


def test_layers_of_no_known_family(tmp_path: Path) -> None:
    name = "lora_unet_double_blocks_0_img_attn_proj"
    tensors = {
        f"{name}.lora_down.weight": torch.ones(1, 3072),
        f"{name}.lora_up.weight": torch.ones(3072, 1),
    }
    save_tensors(tmp_path / "flux.safetensors", tensors)
    with pytest.raises(StateError, match=r"None of the 1 LoRA layers of flux\.safetensors"):
        import_lora(tmp_path / "flux.safetensors")


def test_too_large_a_rank_is_refused_by_name(tmp_path: Path) -> None:
    plain(tmp_path / "a.safetensors", "demo", {f"{BLOCK}.attn2.to_k": (1281, 1.0)})
    with pytest.raises(StateError, match=r"a\.safetensors.*1281"):
        import_lora(tmp_path / "a.safetensors")


def test_files_that_are_no_kohya_lora(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="missing"):
        import_lora(tmp_path / "missing.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not a header")
    with pytest.raises(FileError, match="broken"):
        import_lora(tmp_path / "broken.safetensors")
    peft = {"unet.mid_block.attentions.0.attn2.to_k.lora_A.weight": torch.ones(1, 8)}
    save_tensors(tmp_path / "peft.safetensors", peft)
    with pytest.raises(FileError, match=r"peft\.safetensors has no LoRA layers in kohya's names"):
        import_lora(tmp_path / "peft.safetensors")


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    plain(path, "demo", {f"{BLOCK}.attn2.to_k": (1, float("nan"))})
    with pytest.raises(FileError, match="not finite in lora_unet_mid_block"):
        import_lora(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lifelong.version": "3"}, "version 3"),
        ({"lifelong.version": ""}, "version none"),
        ({"lifelong.checksum": "0"}, "checksum"),
        ({"lifelong.family": "flux"}, "flux"),
        ({"lifelong.concepts": json.dumps(["Ducky", "sks-1"])}, "checksum"),
        ({"lifelong.embedding.sks-1": json.dumps({"noun": "cat"})}, "checksum"),
        ({"lifelong.embedding.other": json.dumps({"noun": "cat"})}, "checksum"),
    ],
)
def test_changed_files_of_ours_say_what_is_wrong(
    make_state, tmp_path: Path, change: dict[str, str], reason: str
) -> None:
    info = ExportInfo("v_prediction")
    path = export_lora(make_state(), tmp_path, tmp_path / "e", "x", info=info).lora
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, metadata | change)
    with pytest.raises(FileError, match=reason) as caught:
        import_lora(path)
    assert path.name in str(caught.value)


def vectors(width: int, shape: list[int], value: float = 0.5) -> dict[str, Any]:
    data = base64.b64encode(torch.full((width,), value).numpy().tobytes()).decode()
    return {"noun": "dog", "clip_l": {"shape": shape, "data": data}}


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({}, "noun"),
        ([1], ""),
        ({"noun": "dog"}, "sks-1"),
        ({**vectors(128, [1, 128]), "noun": ""}, "noun"),
        (vectors(128, [2, 128]), "reshape"),
        (vectors(128, [128]), "width"),
        (vectors(64, [1, 64]), "128"),
        (vectors(128, [1, 128], float("nan")), "not finite"),
        ({"noun": "dog", "clip_l": {"shape": [1, 128], "data": "?"}}, ""),
        ({"noun": "dog", "clip_l": {"shape": [1, 128]}}, "data"),
        ({"noun": "dog", "clip_l": 1}, ""),
        ({**vectors(128, [1, 128]), "clip_g": vectors(128, [1, 128])["clip_l"]}, "clip_g"),
    ],
)
def test_unreadable_concepts_say_what_is_wrong(
    make_state, tmp_path: Path, entry: Any, reason: str
) -> None:
    info = ExportInfo("v_prediction")
    path = export_lora(make_state(), tmp_path, tmp_path / "e", "x", info=info).lora
    tensors, metadata = load_tensors(path)
    metadata["lifelong.embedding.sks-1"] = json.dumps(entry)
    concepts = {key: text for key, text in metadata.items() if "embedding" in key}
    concepts["lifelong.concepts"] = metadata["lifelong.concepts"]
    metadata["lifelong.checksum"] = content_hash(tensors, concepts)
    save_tensors(path, tensors, metadata)
    with pytest.raises(FileError, match=f"concepts in {path.name} cannot be read.*{reason}"):
        import_lora(path)


def test_changed_weights_are_noticed(make_state, tmp_path: Path) -> None:
    info = ExportInfo("v_prediction")
    path = export_lora(make_state(), tmp_path, tmp_path / "e", "x", info=info).lora
    raw = bytearray(path.read_bytes())
    raw[-40] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(FileError, match="checksum"):
        import_lora(path)
