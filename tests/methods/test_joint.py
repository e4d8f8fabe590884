"""All concepts in one lesson."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lifelong_core.adapters import AdapterSpec
from lifelong_core.adapters.frozen import frozen_adapter
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.concepts import ConceptTask, make_task
from lifelong_core.errors import InputError
from lifelong_core.lesson import LessonSettings
from lifelong_core.methods import any_prompt_state, learn, learn_joint
from lifelong_core.seeding import generator
from lifelong_core.state import LifelongState
from lifelong_core.training import Progress, priors
from lifelong_core.training import lesson as training_lesson
from lifelong_core.training.localized import LocalizedWords

SETTINGS = LessonSettings(
    steps=2, batch_size=2, prior_batch_size=1, prior_count=0, adapter=AdapterSpec(rank=2)
)


class Cancel(BaseException):
    """What ComfyUI's cancel looks like."""


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


def task(token: str, noun: str, size: int = 64) -> ConceptTask:
    draw = generator(0, token)
    return make_task(
        token, noun, [torch.rand(3, size, size, generator=draw) for _ in range(2)], size=size
    )


TASKS = (task("my_dog", "dog"), task("my_cat", "cat"), task("her_dog", "dog"))


@pytest.fixture(scope="module")
def learned(backbone: Backbone) -> LifelongState:
    return learn_joint(backbone, TASKS, settings=SETTINGS)


def test_one_lesson_teaches_every_token(backbone: Backbone, learned: LifelongState) -> None:
    assert [c.token for c in learned.concepts] == ["my_dog", "my_cat", "her_dog"]
    for record, given in zip(learned.records, TASKS, strict=True):
        start = backbone.text.noun_vector(given.noun)["clip_l"]
        assert float((record.concept.vectors["clip_l"] - start).abs().max()) > 0
        assert record.task_hash == given.content_hash
        assert record.settings["method"] == "joint"
        assert not record.adapter
    assert all(float(v.abs().sum()) > 0 for k, v in learned.adapter.items() if k.endswith("up"))
    assert learned.records[-1].metrics["steps"] == 3 * SETTINGS.steps
    assert any_prompt_state(learned) is learned


def test_the_loss_falls_on_every_concept(backbone: Backbone) -> None:
    """On noise that training never saw; a random model gets from the prompt to the picture's mean
    colour at most, so the pictures are plain."""
    colours = {"my_red": (0.9, 0.1, 0.1), "my_blue": (0.1, 0.1, 0.9)}
    tasks = [
        make_task(token, "dog", [torch.tensor(rgb)[:, None, None].expand(3, 64, 64)], size=64)
        for token, rgb in colours.items()
    ]
    settings = replace(SETTINGS, steps=12, batch_size=4, learning_rate=1e-2)
    state = learn_joint(backbone, tasks, settings=settings)
    fresh = replace(state, adapter={k: torch.zeros_like(v) for k, v in state.adapter.items()})
    for given in tasks:
        assert loss(backbone, state, given) < 0.99 * loss(backbone, fresh, given)


def loss(backbone: Backbone, state: LifelongState, given: ConceptTask) -> float:
    """Denoising loss of a task's picture with the state's adapter and vectors."""
    latents = backbone.codec.encode(given.images).repeat(8, 1, 1, 1)
    draw = generator(9, given.token)
    noise = torch.randn(latents.shape, generator=draw)
    timesteps = torch.arange(100, 900, 100)
    noisy = backbone.schedule.add_noise(latents, noise, timesteps)
    target = backbone.schedule.target(latents, noise, timesteps)
    adapter = frozen_adapter(state.adapter_spec, backbone, state.adapter)
    with torch.no_grad(), adapter.attached(backbone):
        prompts = backbone.text.encode([f"a photo of {given.phrase}"] * 8, state.vectors)
        output = backbone.predict(noisy, timesteps, prompts)
    return float((output - target).square().mean())


def test_one_task_is_a_plain_lesson(backbone: Backbone) -> None:
    joint = learn_joint(backbone, TASKS[:1], settings=SETTINGS)
    plain = learn(backbone, TASKS[0], settings=SETTINGS)
    assert all(torch.equal(joint.adapter[key], value) for key, value in plain.adapter.items())
    assert torch.equal(joint.concepts[0].vectors["clip_l"], plain.concepts[0].vectors["clip_l"])


def test_pictures_of_a_noun_are_drawn_once(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(priors, "SAMPLER_STEPS", 1)
    settings = replace(SETTINGS, steps=1, prior_count=2)
    state = learn_joint(backbone, TASKS, settings=settings, workspace=tmp_path)
    assert set(state.records[-1].metrics["terms"]) == {"denoising", "prior"}
    assert len(list((tmp_path / "priors").iterdir())) == 2, "dog and cat"


def test_a_cancelled_run_goes_on_and_a_finished_one_is_found(
    backbone: Backbone, learned: LifelongState, tmp_path: Path
) -> None:
    def cancel(progress: Progress) -> None:
        if progress.step == 4:
            raise Cancel

    with pytest.raises(Cancel):
        learn_joint(backbone, TASKS, settings=SETTINGS, workspace=tmp_path, on_progress=cancel)
    assert not any("forward" in module.__dict__ for module in backbone.unet.modules())
    for expected in ([5, 6], []):
        steps: list[int] = []
        state = learn_joint(
            backbone, TASKS, settings=SETTINGS, workspace=tmp_path,
            on_progress=lambda progress, steps=steps: steps.append(progress.step),
        )  # fmt: skip
        assert steps == expected
        assert state.content_hash == learned.content_hash


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        ((), "no task"),
        ((TASKS[0], task("MY_dog", "cat")), "token"),
        ((TASKS[0], task("my_cat", "cat", 128)), "different sizes"),
        ((task("sks", "dog"),), "already knows"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    backbone: Backbone, tasks: tuple[ConceptTask, ...], says: str
) -> None:
    called: list[Progress] = []
    with pytest.raises(InputError, match=says):
        learn_joint(backbone, tasks, settings=SETTINGS, on_progress=called.append)
    assert not called


def test_every_concept_can_be_known_in_its_own_words_alone(
    backbone: Backbone, learned: LifelongState, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    real = training_lesson.LocalizedWords

    def looked_at(nouns: dict[str, str], seed: int) -> LocalizedWords:
        told.append(nouns)
        return real(nouns, seed)

    monkeypatch.setattr(training_lesson, "LocalizedWords", looked_at)
    other = learn_joint(backbone, TASKS, settings=replace(SETTINGS, localized_words=True))
    assert told == [{"my_dog": "dog", "my_cat": "cat", "her_dog": "dog"}]
    assert any(not torch.equal(other.adapter[key], learned.adapter[key]) for key in other.adapter)
