"""Which method can go on after which, and that a lesson's adapter has one set of bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lifelong_core.adapters import AdapterSpec, build_adapter
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.concepts import Concept, ConceptTask, make_task
from lifelong_core.errors import StateError
from lifelong_core.lesson import LessonSettings
from lifelong_core.methods import (
    LESSON_METHODS,
    METHODS,
    check_consolidates,
    check_follows,
    check_separate,
    learn,
    teach,
)
from lifelong_core.methods.parts import start_afresh
from lifelong_core.methods.table import Records
from lifelong_core.seeding import generator
from lifelong_core.state import LifelongState, TaskRecord
from lifelong_core.training import Progress

SPEC = AdapterSpec(rank=2)
SETTINGS = LessonSettings(steps=1, batch_size=1, prior_count=0, adapter=SPEC)
CUMULATIVE = ("lora", "ewc", "lwf", "dsc_ewc_dc", "textual_inversion")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


def task() -> ConceptTask:
    picture = torch.rand(3, 32, 32, generator=generator(0, "picture"))
    return make_task("my_new", "dog", [picture], size=32)


def learned(backbone: Backbone, *methods: str | None) -> LifelongState:
    """A state of one lesson by each of `methods`."""
    weights = build_adapter(SPEC, backbone, seed=0).state()
    records = [
        TaskRecord(
            Concept(f"my_{number}", "cat", backbone.text.noun_vector("cat")),
            "",
            weights,
            {} if method is None else {"method": method},
            {},
        )
        for number, method in enumerate(methods)
    ]
    return LifelongState("demo", backbone.fingerprint, SPEC, weights, tuple(records))


@pytest.mark.parametrize(
    ("before", "method"),
    [
        *((name, "c_lora") for name in (*CUMULATIVE, "joint", "lora_merge", None)),
        *(("c_lora", name) for name in (*CUMULATIVE, "hard_routing")),
        ("ewc", "lora_merge"),
        ("lora", "hard_routing"),
        ("lora_merge", "ewc"),
        ("hard_routing", "dsc"),
        ("custom_diffusion", "custom_diffusion_merge"),
        ("custom_diffusion_merge", "custom_diffusion_ewc"),
        *((name, "cidm") for name in (*CUMULATIVE, "c_lora", "orthogonal_adaptation", None)),
        *((name, "orthogonal_adaptation") for name in (*CUMULATIVE, "c_lora", "lora_merge", None)),
        ("cidm", "lora"),
        ("orthogonal_adaptation", "hard_routing"),
    ],
)
def test_methods_that_keep_other_adapters_are_refused_before_the_lesson(
    backbone: Backbone, tmp_path: Path, before: str | None, method: str
) -> None:
    state, called = learned(backbone, before), list[Progress]()
    with pytest.raises(StateError, match=f"'my_0', learned with.*method '{method}'"):
        teach(
            backbone, task(), state=state, method=method, settings=SETTINGS,
            on_progress=called.append, workspace=tmp_path,
        )  # fmt: skip
    assert not called
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", METHODS)
def test_the_methods_that_can_be_chosen_are_named(backbone: Backbone, method: str) -> None:
    state = learned(backbone, method)
    other = "lora" if METHODS[method].records is not Records.WHOLE else "c_lora"
    with pytest.raises(StateError) as caught:
        check_follows(state, other)
    offered = str(caught.value).split("Choose", 1)[1]
    named = {name for name in METHODS if f"'{name}'" in offered}
    assert named and named <= set(LESSON_METHODS), "ablations are not for artists"
    assert (method in named) == (method in LESSON_METHODS)
    for name in named:
        check_follows(state, name)


@pytest.mark.parametrize(
    ("before", "method"),
    [
        *((name, "ewc_dc") for name in (*CUMULATIVE, "joint", None)),
        ("c_lora", "c_lora"),
        ("lora_merge", "hard_routing"),
        ("hard_routing", "lora_merge"),
        ("hard_routing", "cidm"),
        ("cidm", "cidm_merged"),
        ("cidm_released", "lora_merge"),
        ("orthogonal_adaptation", "orthogonal_adaptation"),
    ],
)
def test_methods_of_the_same_records_can_follow_one_another(
    backbone: Backbone, before: str | None, method: str
) -> None:
    check_follows(learned(backbone, before, before), method)
    check_follows(None, method)


def test_one_lesson_of_another_kind_is_found_among_many(backbone: Backbone) -> None:
    with pytest.raises(StateError, match="'my_1'.*'lora'"):
        check_follows(learned(backbone, "c_lora", "lora", "c_lora"), "c_lora")


@pytest.mark.parametrize("method", METHODS)
def test_lessons_that_build_on_each_other_cannot_be_taken_apart(
    backbone: Backbone, method: str
) -> None:
    state = learned(backbone, method, method)
    if METHODS[method].records is Records.ADDED:
        with pytest.raises(StateError, match=f"'my_0'.*'{method}'.*without them"):
            check_separate(state)
    else:
        check_separate(state)


@pytest.mark.parametrize("method", METHODS)
def test_the_table_says_where_lessons_start(backbone: Backbone, method: str) -> None:
    own = METHODS[method].start is start_afresh
    assert own == (METHODS[method].records is Records.OWN)


@pytest.mark.parametrize("method", ["hard_routing", "c_lora", "lora"])
def test_an_adapter_that_is_drawn_from_its_record_has_its_bits(
    backbone: Backbone, method: str
) -> None:
    state = learn(backbone, task(), method=method, settings=SETTINGS)
    kept = state.records[0].adapter
    same = [torch.equal(state.adapter[key], value.float()) for key, value in kept.items()]
    assert all(same) if method != "lora" else not any(same)


@pytest.mark.parametrize(
    "method", ["c_lora", "lora_merge", "hard_routing", "cidm", "orthogonal_adaptation"]
)
def test_adapters_of_single_lessons_are_not_consolidated(backbone: Backbone, method: str) -> None:
    with pytest.raises(StateError, match=f"'my_0' was learned with method '{method}'"):
        check_consolidates(learned(backbone, method))


@pytest.mark.parametrize("method", [*CUMULATIVE, None])
def test_adapters_of_all_lessons_are_consolidated(backbone: Backbone, method: str | None) -> None:
    check_consolidates(learned(backbone, method, method))
