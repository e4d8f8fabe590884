"""Lessons that need a memory of earlier concepts, and what they leave in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lifelong_core.adapters import AdapterSpec
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.concepts import ConceptTask, make_task
from lifelong_core.errors import InputError, StateError
from lifelong_core.lesson import LessonSettings
from lifelong_core.memory import LongTermMemory, MemorySettings, ShortTermMemory, recall
from lifelong_core.memory.features import NamedFeatures
from lifelong_core.methods import METHODS, Method, learn, lesson_key, teach, usual_features
from lifelong_core.methods.parts import continue_adapter, denoise_concept
from lifelong_core.state import LifelongState
from lifelong_core.training.lesson import Lesson

SETTINGS = LessonSettings(steps=1, batch_size=1, prior_count=0, adapter=AdapterSpec(rank=2))
QUICK = MemorySettings(candidates=2, steps=1)
COLOURS = NamedFeatures("colours:1", lambda images: images.mean((2, 3)) + 1e-3)
seen: list[ShortTermMemory | None] = []


def look(lesson: Lesson) -> None:
    """A term that is left out, having noted the lesson's memory."""
    seen.append(lesson.memory)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


@pytest.fixture(autouse=True)
def replayer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that replays, without a loss of its own."""
    method = Method("Replayer", "", continue_adapter, (denoise_concept, look), replays="random")
    monkeypatch.setitem(METHODS, "replayer", method)
    seen.clear()


def task(token: str = "my_dog") -> ConceptTask:
    draw = torch.Generator().manual_seed(len(token))
    return make_task(token, "dog", torch.rand(2, 3, 64, 64, generator=draw), size=64)


@pytest.fixture(scope="module")
def first(backbone: Backbone) -> LifelongState:
    """A lesson that replays nothing, remembered because it was asked for."""
    return learn(backbone, task(), settings=SETTINGS, features=COLOURS)


@pytest.fixture(scope="module")
def memory(backbone: Backbone, first: LifelongState) -> ShortTermMemory:
    return recall(backbone, first, COLOURS, settings=QUICK, size=64).memory


def test_lessons_remember_when_the_method_replays_or_it_is_asked_for(
    backbone: Backbone, first: LifelongState, tmp_path: Path
) -> None:
    plain = learn(backbone, task(), settings=SETTINGS, workspace=tmp_path)
    assert LongTermMemory.of(plain) is None
    # The finished lesson is found again, and remembered then: the key is the same.
    asked = learn(backbone, task(), settings=SETTINGS, features=COLOURS, workspace=tmp_path)
    assert len(list((tmp_path / "lessons").iterdir())) == 1
    assert asked.content_hash == first.content_hash
    assert replace(asked, extras={}).content_hash == plain.content_hash
    replayed = LongTermMemory.of(learn(backbone, task(), settings=SETTINGS, method="replayer"))
    assert replayed is not None
    assert replayed.feature_model.startswith("world_clip:")


def test_lessons_are_remembered_by_the_world_clip_unless_asked_otherwise(
    backbone: Backbone, first: LifelongState, caplog: pytest.LogCaptureFixture
) -> None:
    usual = usual_features(None, "ewc")
    assert usual is not None and usual.fingerprint.startswith("world_clip:")
    assert usual_features(None, "cidm") is None
    state = learn(backbone, task(), settings=SETTINGS, features=usual)
    assert usual_features(state, "ewc") is usual
    assert not caplog.records
    assert usual_features(first, "ewc") is None
    assert "remembered by colours:1, which is not given here" in caplog.text


def test_feature_models_that_cannot_be_used_cost_no_lesson(
    backbone: Backbone, first: LifelongState, tmp_path: Path
) -> None:
    given = {"settings": SETTINGS, "workspace": tmp_path}
    broken = NamedFeatures("colours:1", lambda images: COLOURS.encode(images) * float("nan"))
    with pytest.raises(InputError, match="not finite"):
        learn(backbone, task(), features=broken, **given)  # type: ignore[arg-type]
    other = NamedFeatures("colours:1", lambda images: COLOURS.encode(images)[:, :2])
    with pytest.raises(StateError, match="different widths"):
        learn(backbone, task("my_toy"), state=first, features=other, **given)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_lessons_with_adapters_of_their_own_cannot_be_remembered(backbone: Backbone) -> None:
    with pytest.raises(InputError, match="'lora_merge' cannot be recalled: .* its own concept"):
        learn(backbone, task(), settings=SETTINGS, method="lora_merge", features=COLOURS)


def test_a_whole_task_draws_what_its_method_replays(
    backbone: Backbone, first: LifelongState, tmp_path: Path
) -> None:
    given = {"settings": SETTINGS, "method": "replayer", "features": COLOURS, "memory": QUICK}
    second = teach(backbone, task("my_toy"), state=first, workspace=tmp_path, **given)  # type: ignore[arg-type]
    memory = LongTermMemory.of(second)
    assert memory is not None and list(memory.concepts) == ["my_dog", "my_toy"]
    wanted = recall(
        backbone, first, COLOURS, settings=replace(QUICK, selection="random"), size=64
    ).memory
    assert [m.content_hash for m in seen if m] == [wanted.content_hash]
    seen.clear()
    again = teach(backbone, task("my_toy"), state=first, workspace=tmp_path, **given)  # type: ignore[arg-type]
    assert again.content_hash == second.content_hash
    assert seen == []


def test_a_first_lesson_needs_no_memory_and_gets_none(
    backbone: Backbone, memory: ShortTermMemory
) -> None:
    teach(backbone, task(), method="replayer", settings=SETTINGS, features=COLOURS, memory=QUICK)
    assert seen == [None]
    with pytest.raises(InputError, match="first lesson"):
        learn(
            backbone,
            task(),
            method="replayer",
            settings=SETTINGS,
            features=COLOURS,
            memory=memory,
        )


def test_what_is_replayed_is_part_of_the_lessons_name(
    backbone: Backbone, first: LifelongState, memory: ShortTermMemory
) -> None:
    named = (backbone, task("my_toy"), first, "replayer", SETTINGS)
    same = replace(memory, images=memory.images.clone())
    other = replace(memory, images=memory.images.flip(-1))
    keys = {lesson_key(*named, given) for given in (None, memory, same, other)}
    assert len(keys) == 3


def test_memories_that_do_not_fit_the_lesson_are_refused(
    backbone: Backbone, first: LifelongState, memory: ShortTermMemory
) -> None:
    given = {"state": first, "settings": SETTINGS, "features": COLOURS}
    with pytest.raises(InputError, match="none were given.*Rainbow Memory Bank"):
        learn(backbone, task("my_toy"), method="replayer", **given)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'lora' replays no pictures.*'l2dm' or 'l2dm_lora'"):
        learn(backbone, task("my_toy"), memory=memory, **given)  # type: ignore[arg-type]
    large = replace(memory, images=torch.rand(2, 3, 128, 128))
    with pytest.raises(InputError, match="128 x 128 pixels, the lesson's 64 x 64"):
        learn(backbone, task("my_toy"), method="replayer", memory=large, **given)  # type: ignore[arg-type]
    elsewhere = replace(first, adapter={key: 2 * value for key, value in first.adapter.items()})
    with pytest.raises(StateError, match="drawn by another state"):
        learn(
            backbone,
            task("my_toy"),
            method="replayer",
            memory=memory,
            **{**given, "state": elsewhere},  # type: ignore[arg-type]
        )
    with pytest.raises(StateError, match="colours:1, but the feature model given is world_clip"):
        learn(
            backbone,
            task("my_toy"),
            state=first,
            settings=SETTINGS,
            method="replayer",
            memory=memory,
        )
    assert seen == []
