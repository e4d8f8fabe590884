"""Runs inside ComfyUI's own process: what widgets say to the library, and what it reports."""

from __future__ import annotations

import importlib

from inside import pack, some_state, torch


def check_widgets_at_their_defaults_are_the_librarys_settings() -> None:
    values = pack("nodes.consolidation_values")
    defaults_for = pack("lifelong_core.consolidation").consolidation_defaults
    inputs = pack("nodes.consolidation_schema").consolidation_inputs()
    apart = {"phases", "classifier_terms", "captions"}
    widgets = {
        one.id: one.default
        for one in inputs
        if getattr(one, "default", None) is not None and one.id not in apart
    }
    for family in pack("lifelong_core.backbone").FAMILIES:
        usual = defaults_for(family)
        assert values.consolidation_settings(usual, **widgets) == usual, family
        assert values.consolidation_settings(usual) == usual, family
    changed = values.consolidation_settings(defaults_for("sd1"), batch_size=2, subset=3, seed=9)
    assert (changed.batch_size, changed.subset, changed.seed) == (2, 3, 9)
    names = [phase.name for phase in values.chosen_phases("DSC, then Fisher", True)]
    plain = [phase.name for phase in values.chosen_phases("DSC, then Fisher", False)]
    assert len(names) == len(plain) == 2 and not set(names) & set(plain)


def check_what_methods_fix_holds_for_every_lesson() -> None:
    values = pack("nodes.lesson_values")
    defaults = pack("lifelong_core.lesson").defaults_for("demo")
    full = values.usual_settings("demo", None, "custom_diffusion")
    assert full.adapter.kind == "key_value" and full.learning_rate < defaults.learning_rate
    state = some_state("x")
    settings = values.usual_settings("demo", state, "ewc")
    assert settings.adapter == state.adapter_spec
    assert settings.learning_rate == defaults.learning_rate
    firm = values.lesson_settings(settings, ewc_weight=0.0, learning_rate=0.25)
    assert (firm.ewc_weight, firm.learning_rate) == (0.0, 0.25)
    assert values.lesson_settings(settings) == settings


def check_a_report_shows_one_lesson_and_many() -> None:
    pages, review = pack("nodes.report_pages"), pack("lifelong_core.review")
    replace = importlib.import_module("dataclasses").replace
    for count in (1, 12):
        (record,) = some_state("x").records
        records = [
            replace(
                record,
                concept=replace(record.concept, token=f"toy_{number}"),
                metrics={"loss": [1.0] * number, "seconds": 1.0},
            )
            for number in range(count)
        ]
        state = replace(some_state("x"), records=records)
        lessons = review.kept_lessons(state, 10)
        picture = torch.rand(2, 3, 64, 64)
        looks = {lesson: review.Looks(picture, picture, picture) for lesson in lessons}
        kept = {(after, n): 1.5 - after / 2 for after in lessons for n in lessons if n <= after}
        told = review.Review(looks, kept)
        drift = review.weight_drift(state, lessons)
        for seen in (None, told):
            page = pages.plots(state, lessons, drift, seen)
            assert page.shape[0] == 1 and page.shape[-1] == 3 and 0 <= page.min() <= page.max() <= 1
        sheet = pages.picture_sheet(state, told)
        assert sheet.shape[1] > 64 * len(lessons) and sheet.shape[2] > 3 * 128
        text = pages.text_report(state, lessons, drift, told)
        assert all(f"embedding:toy_{number} dog" in text for number in range(count))
