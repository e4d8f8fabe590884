"""Replay of real pictures: every earlier one is seen again, and none gets into a state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lifelong_core.adapters import AdapterSpec
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.concepts import ConceptTask, make_task
from lifelong_core.errors import InputError
from lifelong_core.lesson import LessonSettings
from lifelong_core.methods import learn
from lifelong_core.methods.real_replay import METHOD, learn_with_real_replay
from lifelong_core.seeding import generator
from lifelong_core.state import LifelongState, load_state, save_state
from lifelong_core.training import Progress
from lifelong_core.training import lesson as training_lesson

SETTINGS = LessonSettings(
    steps=2, batch_size=3, prior_batch_size=1, prior_count=0, replay_batch_size=1,
    adapter=AdapterSpec(rank=2),
)  # fmt: skip


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


def task(number: int, pictures: int = 2, size: int = 32) -> ConceptTask:
    draw = generator(0, "picture", number)
    images = [torch.rand(3, size, size, generator=draw) for _ in range(pictures)]
    return make_task(f"thing_{number}", "dog", images, size=size)


TASKS = (task(1), task(2, pictures=4), task(3))


@pytest.fixture(scope="module")
def two(backbone: Backbone) -> LifelongState:
    first = learn_with_real_replay(backbone, TASKS[:1], state=None, settings=SETTINGS)
    return learn_with_real_replay(backbone, TASKS[:2], state=first, settings=SETTINGS)


def test_a_first_lesson_is_that_of_a_sequential_lora(backbone: Backbone) -> None:
    first = learn_with_real_replay(backbone, TASKS[:1], state=None, settings=SETTINGS)
    alone = learn(backbone, TASKS[0], settings=SETTINGS)
    assert all(torch.equal(value, alone.adapter[key]) for key, value in first.adapter.items())


def test_all_earlier_pictures_are_seen_as_often_as_the_new_ones(
    backbone: Backbone, two: LifelongState, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = training_lesson.train_adapter

    def looked_at(lesson, sources, *arguments, **options):  # type: ignore[no-untyped-def]
        seen.extend(sources)
        return real(lesson, sources, *arguments, **options)

    monkeypatch.setattr(training_lesson, "train_adapter", looked_at)
    state = learn_with_real_replay(backbone, TASKS, state=two, settings=SETTINGS)
    new, old = seen
    assert (new.role, old.role) == ("concept", "replay")
    assert new.batch_size == old.batch_size == SETTINGS.batch_size
    assert old.prompts == TASKS[0].captions + TASKS[1].captions
    with torch.no_grad():
        latents = [backbone.codec.encode(one.images) for one in TASKS[:2]]
    torch.testing.assert_close(old.views[:, 0], torch.cat(latents))
    counts = [0, 0]
    for index in range(200):
        for prompt in old.draw(0, index)[1]:
            counts[0 if "thing_1" in prompt else 1] += 1
    assert counts == [300, 300]
    assert set(state.records[-1].metrics["terms"]) == {"denoising", "replay"}
    assert {record.settings["method"] for record in state.records} == {METHOD}


def test_no_picture_gets_into_the_state(two: LifelongState, tmp_path: Path) -> None:
    state = load_state(save_state(two, tmp_path / "x.lifelong.safetensors"))
    assert not state.extras
    kept = [*state.adapter.values()]
    for record in state.records:
        kept += [*record.adapter.values(), *record.concept.vectors.values()]
    assert {value.dim() for value in kept} == {2}, "matrices and token vectors"


@pytest.mark.parametrize("wrong", ["another order", "too few", "another size"])
def test_other_tasks_than_the_states_are_refused_before_any_work(
    backbone: Backbone, two: LifelongState, tmp_path: Path, wrong: str
) -> None:
    tasks = {
        "another order": (TASKS[1], TASKS[0], TASKS[2]),
        "too few": TASKS[1:],
        "another size": (*TASKS[:2], task(3, size=64)),
    }[wrong]
    called = list[Progress]()
    with pytest.raises(InputError, match="size" if wrong == "another size" else "earlier tasks"):
        learn_with_real_replay(
            backbone, tasks, state=two, settings=SETTINGS, workspace=tmp_path,
            on_progress=called.append,
        )  # fmt: skip
    assert not called and not list(tmp_path.iterdir())


class Stop(Exception):
    """Raised by a progress callback."""


def test_a_stopped_lesson_goes_on_and_a_finished_one_is_known(
    backbone: Backbone, two: LifelongState, tmp_path: Path
) -> None:
    expected = learn_with_real_replay(backbone, TASKS, state=two, settings=SETTINGS)

    def stop(progress: Progress) -> None:
        if progress.step == 1:
            raise Stop

    with pytest.raises(Stop):
        learn_with_real_replay(
            backbone, TASKS, state=two, settings=SETTINGS, workspace=tmp_path, on_progress=stop
        )
    steps = list[int]()
    for _ in range(2):
        learned = learn_with_real_replay(
            backbone, TASKS, state=two, settings=SETTINGS, workspace=tmp_path,
            on_progress=lambda progress: steps.append(progress.step),
        )  # fmt: skip
        assert learned.content_hash == expected.content_hash
    assert steps == [2]
    other = replace(SETTINGS, steps=1)
    again = learn_with_real_replay(backbone, TASKS, state=two, settings=other, workspace=tmp_path)
    assert again.content_hash != expected.content_hash
