"""L²DM, its ablations, and SVDiff, on a demo model with random weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lifelong_core.adapters import AdapterSpec
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.concepts import Concept, ConceptTask, make_task
from lifelong_core.consolidation import ConsolidationSettings
from lifelong_core.lesson import LessonSettings, defaults_for, for_adapter
from lifelong_core.memory import RAINBOW, RANDOM, MemorySettings, ShortTermMemory
from lifelong_core.memory.features import NamedFeatures
from lifelong_core.methods import METHODS, learn, lesson_settings, teach
from lifelong_core.objectives.replay import Replay
from lifelong_core.seeding import generator
from lifelong_core.state import LifelongState, TaskRecord
from lifelong_core.training import lesson as lesson_module
from lifelong_core.training.lesson import lesson_pictures, prepare_lesson
from lifelong_core.training.localized import LocalizedWords

SETTINGS = LessonSettings(
    steps=1, batch_size=1, prior_batch_size=1, replay_batch_size=2, prior_count=8,
    adapter=AdapterSpec(rank=2), norm_learning_rate=1e-4,
)  # fmt: skip
QUICK = MemorySettings(candidates=2, steps=1)
FISHER = ConsolidationSettings(fisher_iterations=2, batch_size=1, subset=2)
COLOURS = NamedFeatures("colours:1", lambda images: images.mean((2, 3)) + 1e-3)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The nouns whose pictures were asked for, and how many; noise stands for all pictures."""
    asked: list[tuple[str, int]] = []

    def noise(_: Backbone, noun: str, count: int, **__: object) -> torch.Tensor:
        asked.append((noun, count))
        return torch.randn(count, 4, 8, 8, generator=generator(0, noun))

    monkeypatch.setattr(lesson_module, "prior_latents", noise)
    return asked


def task(token: str, noun: str = "dog") -> ConceptTask:
    pictures = torch.rand(2, 3, 64, 64, generator=generator(0, token))
    return make_task(token, noun, pictures, size=64)


def knowing(backbone: Backbone, nouns: dict[str, str], spec: AdapterSpec) -> LifelongState:
    """A state with these concepts and a fresh adapter."""
    adapter = lesson_module.build_adapter(spec, backbone, seed=0).state()
    records = tuple(
        TaskRecord(Concept(token, noun, backbone.text.noun_vector(noun)), token, adapter, {}, {})
        for token, noun in nouns.items()
    )
    return LifelongState("demo", backbone.fingerprint, spec, adapter, records)


@pytest.mark.parametrize("method", ["l2dm", "l2dm_lora", "l2dm_ewc_dc", "l2dm_lora_ewc_dc"])
def test_a_second_lesson_replays_what_the_first_left(backbone: Backbone, method: str) -> None:
    given = {"method": method, "settings": SETTINGS, "features": COLOURS, "memory": QUICK}
    given |= {"consolidation": FISHER}
    first = teach(backbone, task("my_dog"), **given)
    second = teach(backbone, task("my_cat", "cat"), state=first, **given)
    terms = set(second.records[1].metrics["terms"])
    assert terms == {"denoising", "prior", "replay"} | ({"ewc"} if "ewc" in method else set())
    assert set(first.records[0].metrics["terms"]) == {"denoising", "prior"}
    moved = [key for key, value in second.adapter.items() if not value.equal(first.adapter[key])]
    kind = "lora" if "lora" in method else "spectral"
    assert second.adapter_spec.kind == kind and len(moved) > 0.9 * len(second.adapter)
    before, after = (state.concepts[0].vectors["clip_l"] for state in (first, second))
    assert torch.equal(before, after), "the earlier token stays as it is"


def test_weights_of_norms_have_a_rate_of_their_own(backbone: Backbone) -> None:
    state = learn(backbone, task("my_dog"), method="svdiff", settings=SETTINGS)
    for key, value in state.adapter.items():
        rate = SETTINGS.learning_rate * 3 if key.endswith(".shift") else 1e-4
        assert 0 < float(value.abs().max()) <= 1.01 * rate, key
    still = replace(SETTINGS, norm_learning_rate=0.0)
    state = learn(backbone, task("my_dog"), method="svdiff", settings=still)
    assert {key.rpartition(".")[2] for key, value in state.adapter.items() if value.any()} == {
        "shift"
    }


def test_pictures_of_all_nouns_and_of_all_memories_come_equally_often(
    backbone: Backbone, drawn: list[tuple[str, int]]
) -> None:
    known = {"my_dog": "dog", "my_cat": "cat", "my_other_dog": "dog"}
    state = knowing(backbone, known, AdapterSpec(rank=2))
    prompts = ("embedding:my_dog", "embedding:my_cat", "embedding:my_cat")
    memory = ShortTermMemory(torch.rand(3, 3, 64, 64), prompts, (0, 1, 1))
    settings = METHODS["l2dm_lora"].settings(SETTINGS)
    lesson = prepare_lesson(
        backbone, task("my_toy", "toy"), settings, state, METHODS["l2dm_lora"].start, memory
    )
    concept, prior, replay = lesson_pictures(lesson, None, None)
    assert drawn == [("dog", 2), ("cat", 2), ("toy", 8)]
    assert (concept.role, prior.role, replay.role) == ("concept", "prior", "replay")
    seen = [prompt for index in range(30) for prompt in prior.draw(0, index)[1]]
    assert {noun: seen.count(f"a photo of a {noun}") for noun in ("dog", "cat", "toy")} == {
        "dog": 10, "cat": 10, "toy": 10,
    }  # fmt: skip
    assert replay.batch_size == 2
    seen = [prompt for index in range(6) for prompt in replay.draw(0, index)[1]]
    assert seen.count("embedding:my_dog") == seen.count("embedding:my_cat") == 6


@pytest.mark.parametrize(
    ("method", "weights", "earlier", "selection"),
    [
        ("l2dm", (1.0, 1.0), 2, RAINBOW),
        ("l2dm_without_tame", (0.0, 1.0), 0, RAINBOW),
        ("l2dm_without_ecd", (1.0, 0.0), 2, RAINBOW),
        ("l2dm_random", (1.0, 1.0), 2, RANDOM),
        ("l2dm_lora", (1.0, 1.0), 2, RAINBOW),
    ],
)
def test_ablations_leave_out_one_thing_each(
    backbone: Backbone, method: str, weights: tuple[float, float], earlier: int, selection: str
) -> None:
    settings = METHODS[method].settings(SETTINGS)
    assert settings.adapter.kind == ("lora" if method == "l2dm_lora" else "spectral")
    state = knowing(backbone, {"my_dog": "dog"}, settings.adapter)
    memory = ShortTermMemory(torch.rand(1, 3, 64, 64), ("embedding:my_dog",), (0,))
    lesson = prepare_lesson(
        backbone, task("my_toy"), settings, state, METHODS[method].start, memory
    )
    term = METHODS[method].terms[2](lesson)
    assert isinstance(term, Replay)
    assert (term.picture_weight, term.teacher_weight) == weights
    assert settings.earlier_prior_count == earlier
    assert METHODS[method].replays == selection


def test_what_the_papers_train_with() -> None:
    for method in ("svdiff", "l2dm"):
        settings = METHODS[method].settings(defaults_for("sd1"))
        assert settings.learning_rate == pytest.approx(1.5e-3)
        assert settings.norm_learning_rate == 1e-6
    assert METHODS["l2dm"].settings(defaults_for("sd1")).earlier_prior_count == 50
    again = for_adapter(defaults_for("sd1"), AdapterSpec("spectral"))
    assert METHODS["l2dm"].settings(again).learning_rate == pytest.approx(1.5e-3)


def test_every_lesson_of_a_stream_has_one_size_of_step(backbone: Backbone) -> None:
    first = lesson_settings(backbone, None, "l2dm")
    state = knowing(backbone, {"my_dog": "dog"}, first.adapter)
    assert lesson_settings(backbone, state, "l2dm") == first


def test_the_text_encoder_is_taught_by_its_own_prompts(backbone: Backbone) -> None:
    adapter = AdapterSpec(rank=2, text_encoder=True)
    settings = replace(SETTINGS, adapter=adapter)
    given = {"method": "l2dm_lora", "settings": settings, "features": COLOURS, "memory": QUICK}
    first = teach(backbone, task("my_dog"), **given)
    second = teach(backbone, task("my_cat", "cat"), state=first, **given)
    moved = [key for key, value in second.adapter.items() if not value.equal(first.adapter[key])]
    assert any(key.startswith("text.clip_l.") for key in moved)
    assert second.records[1].metrics["terms"]["replay"][0] > 0


def test_replayed_concepts_are_read_as_they_were_learned(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, str]] = []

    def noting(nouns: dict[str, str], seed: int) -> LocalizedWords:
        seen.append(dict(nouns))
        return LocalizedWords(nouns, seed)

    monkeypatch.setattr(lesson_module, "LocalizedWords", noting)
    given = {"method": "l2dm_lora", "features": COLOURS, "memory": QUICK}
    localized = replace(SETTINGS, localized_words=True)
    first = teach(backbone, task("my_dog"), settings=localized, **given)
    teach(backbone, task("my_cat", "cat"), state=first, settings=SETTINGS, **given)
    assert seen == [{"my_dog": "dog"}] * 2
