"""Features and prompts of past lessons: kept in states and files, and refused when unusable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lifelong_core.errors import FileError, InputError, StateError
from lifelong_core.files import VERSION, load_tensors, save_tensors
from lifelong_core.memory import (
    ConceptMemory,
    LongTermMemory,
    forget,
    load_bank,
    remember,
    save_bank,
    with_memory,
)
from lifelong_core.memory.features import NamedFeatures, features_named, world_features
from lifelong_core.state import LifelongState, load_state, save_state

from .toy import BASE, COLOURS, OTHERS, colours, state, task


@pytest.fixture
def remembered() -> LifelongState:
    """Two lessons, each remembered when it was the newest."""
    first = remember(state([task("toy-2")]), task("toy-2"), COLOURS)
    two = replace(state([task("toy-2"), task("a_1", 3)]), extras=first.extras)
    return remember(two, task("a_1", 3), COLOURS)


def known(of: LifelongState) -> LongTermMemory:
    memory = LongTermMemory.of(of)
    assert memory is not None
    return memory


def test_a_lesson_is_remembered_by_unit_features_and_its_captions(
    remembered: LifelongState,
) -> None:
    memory = known(remembered)
    assert list(memory.concepts) == ["toy-2", "a_1"]
    assert (memory.base_fingerprint, memory.feature_model) == (BASE, "colours:1")
    assert memory.width == 12
    wanted = torch.nn.functional.normalize(colours(task("a_1", 3).images), dim=1)
    assert torch.equal(memory.concepts["a_1"].features, wanted)
    assert memory.concepts["a_1"].prompts == task("a_1", 3).captions


def test_states_and_bank_files_give_the_memory_back(
    remembered: LifelongState, tmp_path: Path
) -> None:
    before = known(remembered)
    loaded = load_state(save_state(remembered, tmp_path / "a.lifelong.safetensors"))
    assert loaded.content_hash == remembered.content_hash
    assert known(loaded).content_hash == before.content_hash
    bank = load_bank(save_bank(before, tmp_path / "bank.safetensors"))
    assert bank.content_hash == before.content_hash
    again = with_memory(forget(remembered), bank)
    assert again.content_hash == remembered.content_hash
    assert LongTermMemory.of(forget(remembered)) is None


def test_prompts_may_hold_any_language() -> None:
    prompt = "ein Foto von embedding:toy-2 犬 🐕"
    concepts = {"toy-2": ConceptMemory(torch.eye(1, 4), (prompt,))}
    memory = LongTermMemory(BASE, "colours:1", concepts)
    assert known(with_memory(state([task("toy-2")]), memory)).concepts["toy-2"].prompts == (prompt,)


def test_nothing_given_can_change_a_memory() -> None:
    features = torch.eye(1, 4)
    memory = LongTermMemory(BASE, "m", {"x": ConceptMemory(features, ("embedding:x dog",))})
    before = memory.content_hash
    features.zero_()
    assert memory.content_hash == before
    with pytest.raises(TypeError):
        memory.concepts["y"] = memory.concepts["x"]  # type: ignore[index]


def test_features_of_another_model_are_refused_by_both_names(remembered: LifelongState) -> None:
    three = replace(state([task("toy-2"), task("a_1", 3), task("third")]), extras=remembered.extras)
    with pytest.raises(StateError, match=r"colours:1.*shapes:1"):
        remember(three, task("third"), OTHERS)
    # The same name with features of another width, as a broken model would give them.
    liar = NamedFeatures("colours:1", lambda images: colours(images)[:, :6])
    with pytest.raises(StateError, match=r"different widths \(\[6, 12\]\)"):
        remember(three, task("third"), liar)


def test_only_the_newest_lesson_is_remembered_and_only_once(remembered: LifelongState) -> None:
    with pytest.raises(StateError, match="not the newest"):
        remember(remembered, task("toy-2"), COLOURS)
    with pytest.raises(StateError, match="'a_1' already"):
        remember(remembered, task("a_1", 3), COLOURS)


def test_a_bank_of_another_base_model_or_of_unknown_concepts_is_refused(
    remembered: LifelongState,
) -> None:
    with pytest.raises(StateError, match="demo-v-1234.*demo-v-9"):
        with_memory(state([task("toy-2"), task("a_1")], base="demo-v-9"), known(remembered))
    with pytest.raises(StateError, match="holds a_1"):
        with_memory(state([task("toy-2")]), known(remembered))


@pytest.mark.parametrize(
    ("features", "prompts", "message"),
    [
        (torch.eye(1, 4) * float("nan"), ("embedding:x dog",), "not finite"),
        (torch.eye(1, 4) * 2, ("embedding:x dog",), "length one"),
        (torch.eye(2, 4), ("embedding:x dog",), r"\(2, 4\) and 1 prompts"),
        (torch.empty(0, 4), (), "at least one picture"),
        (torch.eye(1, 4), ("a photo of a dog",), "lost its concept"),
        (torch.eye(1, 4), ("a photo of embedding:xx dog",), "lost its concept"),
    ],
)
def test_memories_that_cannot_be_used_are_refused(
    features: torch.Tensor, prompts: tuple[str, ...], message: str
) -> None:
    with pytest.raises(StateError, match=message):
        LongTermMemory(BASE, "m:1", {"x": ConceptMemory(features, prompts)})


def test_an_empty_bank_is_refused() -> None:
    with pytest.raises(StateError, match="is empty"):
        LongTermMemory(BASE, "m:1", {})


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda images: colours(images) * float("nan"), "not finite"),
        (lambda images: colours(images) * 0.0, "or zero"),
        (lambda images: colours(images)[:1], "one row per picture"),
        (lambda images: images, "one row per picture"),
    ],
)
def test_feature_models_that_give_no_features_are_refused(encode, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        remember(state([task("toy-2")]), task("toy-2"), NamedFeatures("bad:1", encode))


def test_a_damaged_group_in_a_state_is_refused(remembered: LifelongState) -> None:
    group = dict(remembered.extras["memory"])
    del group["a_1/prompts"]
    broken = replace(remembered, extras={"memory": group})
    with pytest.raises(StateError, match="does not fit together.*a_1/prompts"):
        LongTermMemory.of(broken)


def test_files_that_are_no_banks_are_refused(remembered: LifelongState, tmp_path: Path) -> None:
    path = save_bank(known(remembered), tmp_path / "bank.safetensors")
    tensors, metadata = load_tensors(path)
    with pytest.raises(FileError, match="Could not read"):
        load_bank(tmp_path / "none.safetensors")
    with pytest.raises(FileError, match="not a memory bank"):
        load_bank(save_state(remembered, tmp_path / "state.safetensors"))
    newer = save_tensors(tmp_path / "newer.safetensors", tensors, {**metadata, VERSION: "99"})
    with pytest.raises(FileError, match="version 99"):
        load_bank(newer)
    changed = {**tensors, "a_1": tensors["a_1"].roll(1, 1)}
    with pytest.raises(FileError, match="checksum"):
        load_bank(save_tensors(tmp_path / "changed.safetensors", changed, metadata))


def test_the_world_clip_remembers_by_128_numbers() -> None:
    model = world_features()
    assert model is features_named("world_clip")
    assert model.fingerprint.startswith("world_clip:")
    memory = known(remember(state([task("toy-2")]), task("toy-2"), model))
    assert memory.concepts["toy-2"].features.shape == (2, 128)
