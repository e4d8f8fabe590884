"""Rows of the tables that change settings: what their names mean, and what is refused."""

from __future__ import annotations

import pytest

from lifelong_core.consolidation import ConsolidationSettings
from lifelong_core.errors import InputError
from lifelong_core.evaluation.ways import way_named
from lifelong_core.lesson import LessonSettings
from lifelong_core.memory import MemorySettings


def test_a_name_changes_settings_of_the_lesson_and_of_what_follows_it() -> None:
    way = way_named("ewc_dc+ewc_weight=10+consolidation.delta=0.25+flip=true+steps=7")
    lesson = way.settings(LessonSettings(seed=3))
    assert lesson == LessonSettings(seed=3, ewc_weight=10.0, flip=True, steps=7)
    after = way.consolidation(ConsolidationSettings(gamma=0.3))
    assert after == ConsolidationSettings(gamma=0.3, delta=0.25)


def test_a_name_changes_what_a_lesson_replays() -> None:
    way = way_named("l2dm+memory.limit=40+replay_weight=0.5")
    assert way.memory(MemorySettings(seed=3)) == MemorySettings(seed=3, limit=40)
    assert way.settings(LessonSettings()) == LessonSettings(replay_weight=0.5)
    assert way.name == "l2dm+replay_weight=0.5+memory.limit=40"


def test_a_plain_name_changes_nothing() -> None:
    way = way_named("ewc")
    assert way.settings(LessonSettings(steps=9)) == LessonSettings(steps=9)
    assert way.consolidation(ConsolidationSettings(delta=2.0)) == ConsolidationSettings(delta=2.0)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("ewc+ewc_weight=10.0", "ewc+ewc_weight=10"),
        ("ewc+ewc_weight=1e1", "ewc+ewc_weight=10"),
        ("c_lora+overlap_weight=1e12", "c_lora+overlap_weight=1e+12"),
        ("ewc+consolidation.temperature=0.0001", "ewc+consolidation.temperature=0.0001"),
        ("ewc+ewc_weight=10+vera", "ewc+vera+ewc_weight=10"),
        ("ewc+attention+steps=3+vera", "ewc+vera+attention+steps=3"),
        ("dsc+consolidation.space=noise", "dsc+consolidation.space=noise"),
        (
            "cidm+shared_rank=4+orthogonality_weight=0.10",
            "cidm+shared_rank=4+orthogonality_weight=0.1",
        ),
        ("replay_real+steps=400", "replay_real+steps=400"),
    ],
)
def test_equal_ways_have_one_name_that_reads_back(written: str, name: str) -> None:
    assert way_named(written).name == way_named(name).name == name


def test_a_changed_rate_is_vera_s_own() -> None:
    way = way_named("lora+vera+learning_rate=0.02")
    settings = way.settings(LessonSettings())
    assert (settings.adapter.kind, settings.learning_rate) == ("vera", 0.02)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ewc+weight=1", "no setting 'weight'.*ewc_weight"),
        ("ewc+consolidation.ewc_weight=1", "no setting.*consolidation.delta"),
        ("ewc+delta=0.5", "no setting"),
        ("ewc+seed=4", "no setting"),
        ("ewc+ewc_weight", "changes no setting"),
        ("ewc+ewc_weight=many", "must be a number"),
        ("ewc+steps=1.5", "must be a whole number"),
        ("ewc+ewc_weight=-1", "must lie between"),
        ("ewc+consolidation.subset=1", "must lie between"),
        ("ewc+consolidation.space=latent", "choose from own, noise"),
        ("ewc+flip=1", "true or false"),
        ("l2dm+memory.selection=random", "no setting.*memory.candidates"),
        ("l2dm+memory.limit=4", "less than the 8 candidates"),
        ("ewc+steps=3+steps=4", "twice"),
        ("cidm+vera", "kind vera does not have"),
        ("l2dm+attention", "adapter of its own"),
        ("custom_diffusion+vera", "adapter of its own"),
        ("orthogonal_adaptation+vera+steps=3", "kind vera does not have"),
        ("cidm+shared_rank=0", "must lie between"),
        ("textual_inversion+learning_rate=0.001", "fixes learning_rate itself"),
    ],
)
def test_what_cannot_be_changed_is_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        way_named(name)
