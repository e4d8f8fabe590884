"""Layer-wise concepts in files: whole for this software, their mean for others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lifelong_core.backbone.context_layers import family_context_layers
from lifelong_core.backbone.families import FAMILIES
from lifelong_core.errors import FileError, InputError, StateError
from lifelong_core.files import VERSION, load_tensors, save_tensors
from lifelong_core.seeding import generator
from lifelong_core.sharing import ExportInfo, export_lora, import_lora
from lifelong_core.state import LifelongState

INFO = ExportInfo("v_prediction", date="2026-01-01T00:00:00+00:00")


def layerwise(state: LifelongState, layers: int | None = None) -> LifelongState:
    """`state` whose first concept is layer-wise."""
    first, *others = state.records
    count = layers or len(family_context_layers(state.family))
    vectors = {
        config.key: torch.randn(count, 2, config.width, generator=generator(3, config.key))
        for config in FAMILIES[state.family].text
    }
    concept = replace(first.concept, vectors=vectors)
    return replace(state, records=(replace(first, concept=concept), *others))


@pytest.mark.parametrize("bundle", [False, True])
@pytest.mark.parametrize("family", ["demo", "sdxl"])
def test_they_come_back_exactly_and_others_read_the_mean(
    make_state, tmp_path: Path, family: str, bundle: bool
) -> None:
    state = layerwise(make_state(family))
    files = export_lora(state, tmp_path, tmp_path / "e", "x", info=INFO, bundle=bundle)
    imported = import_lora(files.lora)
    for mine, theirs in zip(state.concepts, imported.concepts, strict=True):
        assert mine.vectors.keys() == theirs.vectors.keys()
        assert all(torch.equal(mine.vectors[key], theirs.vectors[key]) for key in mine.vectors)
    single = {key: value.mean(0) for key, value in state.concepts[0].vectors.items()}
    embedding, _ = load_tensors(files.embeddings[0])
    assert len(embedding) == len(single)
    for key, value in single.items():
        assert torch.equal(embedding["emb_params" if family == "demo" else key], value)
    tensors, metadata = load_tensors(files.lora)
    assert metadata["lifelong.layers"] == str(len(family_context_layers(family)))
    bundled = {key: value for key, value in tensors.items() if key.startswith("bundle_emb.sks-1.")}
    assert len(bundled) == (len(single) if bundle else 0)
    for key, value in bundled.items():
        part = key.removeprefix("bundle_emb.sks-1.")
        assert torch.equal(value, single["clip_l" if part == "string_to_param.*" else part])


def test_files_without_such_concepts_are_as_they_were(make_state, tmp_path: Path) -> None:
    _, metadata = load_tensors(
        export_lora(make_state(), tmp_path, tmp_path / "e", "x", info=INFO).lora
    )
    assert metadata[VERSION] == "1" and "lifelong.layers" not in metadata


def test_earlier_software_is_told_of_another_version(make_state, tmp_path: Path) -> None:
    state = layerwise(make_state())
    _, metadata = load_tensors(export_lora(state, tmp_path, tmp_path / "e", "x", info=INFO).lora)
    assert metadata[VERSION] == "2"


def test_vectors_for_another_number_of_layers_are_refused(make_state, tmp_path: Path) -> None:
    state = layerwise(make_state(), 16)
    path = export_lora(state, tmp_path, tmp_path / "e", "x", info=INFO).lora
    with pytest.raises(FileError, match="16 cross-attention layers"):
        import_lora(path)


def test_the_checksum_covers_the_number_of_layers(make_state, tmp_path: Path) -> None:
    state = layerwise(make_state())
    path = export_lora(state, tmp_path, tmp_path / "e", "x", info=INFO).lora
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, metadata | {"lifelong.layers": "9"})
    with pytest.raises(FileError, match="checksum"):
        import_lora(path)


def test_uneven_vectors_are_no_concept(make_state) -> None:
    concept = make_state("sdxl").concepts[0]
    with pytest.raises(InputError, match="alike for all text encoders"):
        replace(
            concept, vectors={"clip_l": torch.zeros(70, 1, 768), "clip_g": torch.zeros(1, 1280)}
        )
    with pytest.raises(InputError, match="shapes"):
        replace(concept, vectors={"clip_l": torch.zeros(768)})
    state = make_state("demo")
    mixed = layerwise(state, 10).records[0], layerwise(state, 9).records[0]
    second = replace(mixed[1].concept, token="other")
    with pytest.raises(StateError, match=r"\[9, 10\] cross-attention layers"):
        replace(state, records=(mixed[0], replace(mixed[1], concept=second)))
