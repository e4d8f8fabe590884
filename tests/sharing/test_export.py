"""What lies on disk after an export, and what happens when something is in the way."""

from __future__ import annotations

import base64
import json
import logging
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lifelong_core.adapters.spec import AdapterSpec
from lifelong_core.concepts import Concept
from lifelong_core.errors import FileError, InputError, StateError
from lifelong_core.files import load_tensors, save_tensors
from lifelong_core.sharing import ExportedFiles, ExportInfo, export_lora, lora_state_dict
from lifelong_core.sharing import export as export_module
from lifelong_core.sharing.naming import kohya_name
from lifelong_core.state import LifelongState, TaskRecord

INFO = ExportInfo("v_prediction")


def export(state: LifelongState, folder: Path, name: str = "mine", **options: Any) -> ExportedFiles:
    return export_lora(state, folder / "loras", folder / "emb", name, info=INFO, **options)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("family", ["demo", "sd1", "sd2", "sdxl"])
def test_every_layer_is_in_the_file_with_its_delta(make_state, tmp_path: Path, family: str) -> None:
    state = make_state(family, AdapterSpec("lora", 1, 3.0, ("attn1.to_out.0",), text_encoder=True))
    tensors, _ = load_tensors(export(state, tmp_path).lora)
    expected = {kohya_name(key.rsplit(".", 1)[0], family): key for key in state.adapter}
    assert {key.split(".")[0] for key in tensors} == expected.keys()
    for name, key in expected.items():
        layer = key.rsplit(".", 1)[0]
        down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
        delta = tensors[f"{name}.alpha"].item() / down.shape[0] * (up @ down)
        assert torch.equal(
            delta, 3.0 * (state.adapter[f"{layer}.up"] @ state.adapter[f"{layer}.down"])
        )


def test_in_memory_tensors_are_layers_only_and_copies(make_state) -> None:
    state = make_state()
    tensors = lora_state_dict(state)
    assert all(key.startswith("lora_unet_") for key in tensors)
    assert {key.split(".", 1)[1] for key in tensors} == {
        "lora_down.weight", "lora_up.weight", "alpha"
    }  # fmt: skip
    for value in tensors.values():
        value.zero_()
    assert all(float(value.abs().sum()) > 0 for value in state.adapter.values())


@pytest.mark.parametrize(
    ("family", "own", "bundled"),
    [
        ("demo", {"emb_params": "clip_l"}, {"string_to_param.*": "clip_l"}),
        ("sd2", {"emb_params": "clip_h"}, {"string_to_param.*": "clip_h"}),
        (
            "sdxl",
            {"clip_l": "clip_l", "clip_g": "clip_g"},
            {"clip_l": "clip_l", "clip_g": "clip_g"},
        ),
    ],
)
def test_embeddings_in_their_files_and_in_the_lora(
    make_state, tmp_path: Path, family: str, own: dict, bundled: dict
) -> None:
    state = make_state(family, AdapterSpec(rank=1, targets=("attn2.to_k",)))
    exported = export(state, tmp_path, bundle=True)
    assert [path.name for path in exported.embeddings] == ["sks-1.safetensors", "Ducky.safetensors"]
    in_lora, _ = load_tensors(exported.lora)
    for concept, path in zip(state.concepts, exported.embeddings, strict=True):
        tensors, _ = load_tensors(path)
        assert tensors.keys() == own.keys()
        for key, encoder in own.items():
            assert torch.equal(tensors[key], concept.vectors[encoder])
        inside = {k for k in in_lora if k.startswith(f"bundle_emb.{concept.token}.")}
        assert inside == {f"bundle_emb.{concept.token}.{key}" for key in bundled}
        for key, encoder in bundled.items():
            assert torch.equal(
                in_lora[f"bundle_emb.{concept.token}.{key}"], concept.vectors[encoder]
            )


def test_names_follow_the_content(make_state, tmp_path: Path) -> None:
    first = export(make_state(seed=0), tmp_path)
    second = export(make_state(seed=1), tmp_path / "2")
    again = export(make_state(seed=0), tmp_path)
    assert first == again and first.lora.name != second.lora.name
    assert len(first.lora.stem) == len("mine-") + 8
    other_rank = export(make_state(spec=AdapterSpec(rank=4, alpha=4.0)), tmp_path / "3")
    assert other_rank.lora.name != first.lora.name


@pytest.mark.parametrize("bundle", [False, True])
def test_equal_weights_with_other_concepts_get_another_name(
    make_state, tmp_path: Path, bundle: bool
) -> None:
    state = make_state()
    first, *others = state.records
    vectors = {key: value + 1e-6 for key, value in first.concept.vectors.items()}
    names = {export(state, tmp_path / "0", bundle=bundle).lora.name}
    for number, concept in enumerate(
        (Concept("sks-1", "dog", vectors), Concept("sks-1", "wolf", first.concept.vectors)), 1
    ):
        records = (replace(first, concept=concept), *others)
        changed = replace(state, records=records)
        names.add(export(changed, tmp_path / str(number), bundle=bundle).lora.name)
    assert len(names) == 3


def test_files_of_an_export(make_state, tmp_path: Path) -> None:
    preview = torch.rand(3, 40, 120, generator=torch.Generator().manual_seed(0))
    exported = export(make_state(), tmp_path, preview=preview)
    stem = exported.lora.stem
    assert files(tmp_path) == {
        f"loras/{stem}.safetensors", f"loras/{stem}.preview.png",
        "emb/sks-1.safetensors", "emb/Ducky.safetensors",
    }  # fmt: skip
    assert exported.preview is not None
    with Image.open(exported.preview) as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        assert not image.info
    assert torch.equal(pixels, (preview * 255).round().byte())


@pytest.mark.parametrize("family", ["demo", "sdxl"])
def test_by_default_the_tensors_are_layers_and_the_metadata_has_the_vectors(
    make_state, tmp_path: Path, family: str
) -> None:
    state = make_state(family, AdapterSpec(rank=1, targets=("attn2.to_k",)))
    tensors, metadata = load_tensors(export(state, tmp_path).lora)
    assert tensors.keys() == lora_state_dict(state).keys()
    for concept in state.concepts:
        entry = json.loads(metadata[f"lifelong.embedding.{concept.token}"])
        assert entry.pop("noun") == concept.noun
        assert entry.keys() == concept.vectors.keys()
        for encoder, value in entry.items():
            numbers = struct.iter_unpack("<f", base64.b64decode(value["data"]))
            read = torch.tensor([number for (number,) in numbers]).reshape(value["shape"])
            assert torch.equal(read, concept.vectors[encoder])


def test_equal_embeddings_may_lie_there(make_state, tmp_path: Path) -> None:
    export(make_state(), tmp_path)
    export(make_state(), tmp_path, name="again")
    assert len(files(tmp_path)) == 4


def test_a_lora_that_would_differ_in_its_date_alone_is_left(make_state, tmp_path: Path) -> None:
    """A program that has loaded it may hold it open."""
    found = export(make_state(), tmp_path).lora
    os.utime(found, (1, 1))
    assert export(make_state(), tmp_path).lora == found and found.stat().st_mtime == 1
    export(make_state(), tmp_path, preview=torch.rand(3, 40, 40))
    assert found.stat().st_mtime > 1, "the thumbnail is new"


def test_other_embeddings_are_not_replaced_unasked(make_state, tmp_path: Path, caplog) -> None:
    export(make_state(seed=0), tmp_path)
    before = (tmp_path / "emb" / "sks-1.safetensors").read_bytes()
    with pytest.raises(FileError, match=r"sks-1\.safetensors exists"):
        export(make_state(seed=1), tmp_path)
    assert (tmp_path / "emb" / "sks-1.safetensors").read_bytes() == before
    assert len(files(tmp_path)) == 3
    with caplog.at_level(logging.WARNING):
        exported = export(make_state(seed=1), tmp_path, overwrite=True)
    assert "sks-1.safetensors" in caplog.text and "restart" in caplog.text
    tensors, _ = load_tensors(exported.embeddings[0])
    assert torch.equal(tensors["emb_params"], make_state(seed=1).concepts[0].vectors["clip_l"])


def test_a_damaged_embedding_is_not_replaced_unasked(make_state, tmp_path: Path) -> None:
    (tmp_path / "emb").mkdir()
    (tmp_path / "emb" / "Ducky.safetensors").write_bytes(b"something of the user's")
    with pytest.raises(FileError, match="Ducky"):
        export(make_state(), tmp_path)
    assert files(tmp_path) == {"emb/Ducky.safetensors"}


def test_a_lora_with_other_concepts_is_never_replaced(make_state, tmp_path: Path) -> None:
    lora = export(make_state(), tmp_path).lora
    tensors, metadata = load_tensors(lora)
    save_tensors(lora, tensors, metadata | {"lifelong.embedding.sks-1": "{}"})
    with pytest.raises(FileError, match=lora.name):
        export(make_state(), tmp_path)


def test_a_lora_with_other_content_is_never_replaced(make_state, tmp_path: Path) -> None:
    lora = export(make_state(), tmp_path).lora
    save_tensors(lora, {"other": torch.ones(1)})
    with pytest.raises(FileError, match=lora.name):
        export(make_state(), tmp_path, overwrite=True)
    assert load_tensors(lora)[0].keys() == {"other"}


@pytest.mark.parametrize("broken", ["preview.png", "Ducky.safetensors", "mine-"])
def test_a_failed_export_takes_its_files_back(
    make_state, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    export(make_state(seed=0, nouns={"sks-1": "dog"}), tmp_path, name="old")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def failing(write):
        def guarded(target, *rest):
            path = target if isinstance(target, Path) else rest[0]
            if broken in path.name:
                raise FileError(f"Could not write {path.name}: No space left on device.")
            return write(target, *rest)

        return guarded

    monkeypatch.setattr(export_module, "save_tensors", failing(export_module.save_tensors))
    monkeypatch.setattr(export_module, "write_png", failing(export_module.write_png))
    with pytest.raises(FileError, match="No space left"):
        export(make_state(seed=1), tmp_path, overwrite=True, preview=torch.zeros(3, 8, 8))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_cancelled_export_takes_its_files_back(
    make_state, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cancelled(BaseException):
        pass

    def cancel(*_: object) -> None:
        raise Cancelled

    monkeypatch.setattr(export_module, "write_png", cancel)
    with pytest.raises(Cancelled):
        export(make_state(), tmp_path, preview=torch.zeros(3, 8, 8))
    assert files(tmp_path) == set()


def test_a_folder_that_cannot_be_written(make_state, tmp_path: Path) -> None:
    (tmp_path / "loras").write_text("a file where the folder should be")
    with pytest.raises(FileError, match="loras"):
        export(make_state(), tmp_path)
    assert files(tmp_path) == {"loras"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "../mine"}, "Name"),
        ({"preview": torch.zeros(1, 8, 8)}, "preview has shape"),
        ({"preview": torch.zeros(2, 3, 8, 8)}, "preview has shape"),
        ({"preview": torch.full((3, 8, 8), float("nan"))}, "not finite"),
    ],
)
def test_unusable_input_is_refused_before_anything_is_written(
    make_state, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        export(make_state(), tmp_path, **options)
    assert files(tmp_path) == set()


def test_unusable_states_are_refused(make_state, tmp_path: Path) -> None:
    state = make_state()
    empty = LifelongState("demo", "x", AdapterSpec(), {})
    with pytest.raises(StateError, match="nothing"):
        export(empty, tmp_path)
    stranger = LifelongState("sd1", "x", state.adapter_spec, state.adapter)
    with pytest.raises(StateError, match="sd1"):
        export(stranger, tmp_path)
    record = TaskRecord(Concept("tok", "cat", {"clip_g": torch.zeros(1, 1280)}), "", {}, {}, {})
    wrong = LifelongState("demo", "x", state.adapter_spec, state.adapter, (record,))
    with pytest.raises(StateError, match="clip_g.*needs clip_l"):
        export(wrong, tmp_path)
    assert files(tmp_path) == set()
