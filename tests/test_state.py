"""States never change, fit their model, and survive the disk or say why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lifelong_core.adapters import AdapterSpec
from lifelong_core.concepts import Concept
from lifelong_core.errors import FileError, StateError
from lifelong_core.files import VERSION, load_tensors, save_tensors
from lifelong_core.state import LifelongState, TaskRecord, load_state, save_state

LAYER = "unet.mid.attn2.to_k"


def adapter(rank: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        f"{LAYER}.down": torch.randn(rank, 5, generator=draw),
        f"{LAYER}.up": torch.randn(7, rank, generator=draw),
    }


def record(token: str, seed: int = 0) -> TaskRecord:
    concept = Concept(token, "dog", {"clip_l": torch.randn(1, 8)})
    return TaskRecord(concept, "hash", adapter(seed=seed), {"steps": 3}, {"loss": [0.5, 0.25]})


def state(*tokens: str) -> LifelongState:
    records = tuple(record(token, seed) for seed, token in enumerate(tokens or ("one", "two")))
    return LifelongState(
        "demo",
        "demo-v-1234",
        AdapterSpec(rank=2, alpha=4.0),
        adapter(),
        records,
        {"fisher": {LAYER: torch.rand(3)}, "memory": {"features": torch.rand(2, 4)}},
    )


def test_saving_and_loading_gives_the_same_state(tmp_path: Path) -> None:
    before = state()
    loaded = load_state(save_state(before, tmp_path / "a.lifelong.safetensors"))
    assert loaded.content_hash == before.content_hash
    assert loaded.adapter_spec == before.adapter_spec
    assert [c.phrase for c in loaded.concepts] == ["embedding:one dog", "embedding:two dog"]
    assert torch.equal(loaded.adapter[f"{LAYER}.up"], before.adapter[f"{LAYER}.up"])
    assert torch.equal(loaded.extras["fisher"][LAYER], before.extras["fisher"][LAYER])
    assert loaded.records[1].settings == {"steps": 3}
    assert loaded.records[1].metrics == {"loss": [0.5, 0.25]}
    assert [p.name for p in tmp_path.iterdir()] == ["a.lifelong.safetensors"]


def test_the_current_adapter_is_exact_and_teachers_are_halves() -> None:
    kept = state()
    assert torch.equal(kept.adapter[f"{LAYER}.up"], adapter()[f"{LAYER}.up"])
    assert kept.adapter[f"{LAYER}.up"].dtype == torch.float32
    assert kept.records[0].adapter[f"{LAYER}.up"].dtype == torch.float16


def test_nothing_given_or_taken_can_change_a_state() -> None:
    weights = adapter()
    kept = replace(state(), adapter=weights)
    before = kept.content_hash
    weights[f"{LAYER}.up"].zero_()
    vectors = kept.vectors
    vectors.clear()
    assert kept.content_hash == before
    for mapping in (kept.adapter, kept.extras, kept.records[0].settings, kept.records[0].metrics):
        with pytest.raises(TypeError):
            mapping["x"] = 1  # type: ignore[index]


def test_fifty_concepts_at_true_size_stay_small(tmp_path: Path) -> None:
    """792,576 weights per adapter, with 1000 losses each, and a Fisher: under 250 MB."""
    spec = AdapterSpec()
    weights = {"unet.a.down": torch.zeros(16, 24_768), "unet.a.up": torch.zeros(24_768, 16)}
    assert sum(w.numel() for w in weights.values()) == 792_576
    vectors = {"clip_l": torch.zeros(1, 768)}
    metrics = {"loss": [0.123456] * 1000, "terms": {"denoising": [0.123456] * 1000}}
    records = [
        TaskRecord(Concept(f"tok{n}", "dog", vectors), "h", weights, {}, metrics) for n in range(50)
    ]
    large = LifelongState("sd1", "f", spec, weights, tuple(records), {"fisher": weights})
    path = save_state(large, tmp_path / "large.safetensors")
    assert path.stat().st_size < 250e6
    assert len(load_state(path).records) == 50


def test_another_base_model_is_refused_by_both_names() -> None:
    backbone = SimpleNamespace(family=SimpleNamespace(name="sd1"), fingerprint="sd1-eps-9")
    with pytest.raises(StateError, match="demo.*demo-v-1234.*sd1.*sd1-eps-9"):
        state().require_backbone(backbone)  # type: ignore[arg-type]
    backbone = SimpleNamespace(family=SimpleNamespace(name="demo"), fingerprint="demo-v-1234")
    state().require_backbone(backbone)  # type: ignore[arg-type]


def test_another_adapter_is_refused_by_both_descriptions() -> None:
    with pytest.raises(StateError, match="rank 2.*rank 8"):
        state().require_adapter(AdapterSpec(rank=8))


def test_parts_that_do_not_fit_together_are_refused() -> None:
    good = state()
    with pytest.raises(StateError, match="Two concepts"):
        replace(good, records=(record("two"), record("TWO")))
    with pytest.raises(StateError, match="shapes"):
        replace(good, adapter=adapter(rank=3))
    with pytest.raises(StateError, match="incomplete"):
        replace(good, adapter={f"{LAYER}.up": torch.zeros(7, 2)})
    other = replace(record("three"), adapter={"unet.x.down": torch.zeros(2, 5)})
    with pytest.raises(StateError, match="three"):
        replace(good, records=(other,))


def damaged(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    if how == "cut in its data":
        data = data[:-5]
    elif how == "cut in its header":
        data = data[: header // 2]
    elif how == "flipped in its data":
        data[-3] ^= 0x10
    elif how == "flipped in its metadata":
        place = data.index(b"demo-v-1234")
        data[place] ^= 0x01
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("cut in its data", "cut short"),
        ("cut in its header", "cut short"),
        ("flipped in its data", "changed or damaged"),
        ("flipped in its metadata", "changed or damaged"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path: Path, how: str, says: str) -> None:
    path = save_state(state(), tmp_path / "a.safetensors")
    damaged(path, how)
    with pytest.raises(FileError, match=f"a.safetensors.*{says}"):
        load_state(path)


def test_other_files_are_refused_by_kind(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="No such file"):
        load_state(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("these are words, no tensors", encoding="utf-8")
    with pytest.raises(FileError, match="not a safetensors file"):
        load_state(tmp_path / "text.safetensors")
    save_tensors(tmp_path / "lora.safetensors", {"a": torch.zeros(2)}, {"format": "pt"})
    with pytest.raises(FileError, match="not a lifelong state"):
        load_state(tmp_path / "lora.safetensors")


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    tensors, metadata = load_tensors(save_state(state(), tmp_path / "a.safetensors"))
    save_tensors(tmp_path / "b.safetensors", tensors, metadata | {VERSION: "99"})
    with pytest.raises(FileError, match="version 99.*up to 1"):
        load_state(tmp_path / "b.safetensors")


def test_an_unwritable_folder_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file where a folder should be", encoding="utf-8")
    with pytest.raises(FileError, match="Could not write"):
        save_state(state(), tmp_path / "folder" / "a.safetensors")
