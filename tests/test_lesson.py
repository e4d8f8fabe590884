"""Settings: limits, help, families, JSON."""

from __future__ import annotations

import dataclasses

import pytest

from lifelong_core.adapters import AdapterSpec
from lifelong_core.backbone import FAMILIES
from lifelong_core.errors import InputError
from lifelong_core.lesson import LessonSettings, defaults_for


def test_every_setting_has_help_and_limits() -> None:
    for field in dataclasses.fields(LessonSettings):
        assert len(field.metadata["help"]) > 10, field.name
        if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
            assert field.metadata["min"] <= field.default <= field.metadata["max"], field.name
        elif isinstance(field.default, str):
            assert field.default in field.metadata["options"], field.name


def test_every_family_has_defaults() -> None:
    for name in FAMILIES:
        assert defaults_for(name).adapter == AdapterSpec()
    with pytest.raises(InputError, match="demo"):
        defaults_for("flux")


def test_json_and_back() -> None:
    settings = LessonSettings(seed=2**64 - 1, adapter=AdapterSpec(rank=3, text_encoder=True))
    assert LessonSettings.from_json(settings.to_json()) == settings
    with pytest.raises(InputError, match="unknown"):
        LessonSettings.from_json(settings.to_json() | {"unknown": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", 100_001),
        ("steps", 2.5),
        ("steps", True),
        ("learning_rate", -1e-3),
        ("learning_rate", float("nan")),
        ("batch_size", 0),
        ("accumulation", 0),
        ("prior_count", -1),
        ("token_count", 0),
        ("precision", "int8"),
        ("lr_schedule", "step"),
        ("seed", -1),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        dataclasses.replace(LessonSettings(), **{name: value})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"rank": -1}, "rank -1"),
        ({"rank": 2000}, "rank 2000"),
        ({"rank": 1.5}, "rank 1.5"),
        ({"alpha": 0.0}, "alpha"),
        ({"kind": "dora"}, "kind 'dora'"),
        ({"targets": ("attn3.to_k",)}, "attn3"),
        ({"targets": ("attn2.to_k", "attn2.to_k")}, "twice"),
        ({"targets": ()}, "changes nothing"),
    ],
)
def test_adapters_that_cannot_be_are_refused(values: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        AdapterSpec(**values)  # type: ignore[arg-type]
