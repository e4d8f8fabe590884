"""Cases draw what their names say, take turns, and ratios are the right way round."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import routing_speed
from benchmarks.regional_cases import AUTOMATIC, REGIONS, regional_ratios
from benchmarks.routing_speed import (
    CASES,
    PLAIN,
    RATIOS,
    Bench,
    interleaved,
    made_bench,
    preparation,
    row,
    summary,
)
from benchmarks.word_cases import ACTIVE, word_ratios, word_works
from lifelong_core.adapters.by_words import AdaptersByWords
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.files import read_json
from lifelong_core.state import LifelongState


@pytest.fixture(scope="module")
def bench() -> Bench:
    return made_bench(random_backbone("demo"), steps=1, concepts=max(ACTIVE))


def test_every_case_draws_with_its_own_adapter(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[LifelongState | None, str]] = []
    monkeypatch.setattr(Bench, "draw", lambda _, state, prompt: drawn.append((state, prompt)))
    for case in CASES.values():
        case(bench)()
    (base, noun), *routed = drawn
    assert base is None and noun == f"a photo of {bench.state.concepts[0].noun}"
    hashes = {state.content_hash for state, _ in routed if state is not None}
    assert len(routed) == 2 and len(hashes) == 1, "one named concept has one adapter"
    assert {prompt for _, prompt in routed} == {bench.prompt(1)}


def test_a_prompt_names_as_many_concepts_as_are_asked_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = []
    known = routing_speed.knowing

    def watched(backbone: Backbone, state: LifelongState):
        ranks.append(state.adapter_spec.rank)
        return known(backbone, state)

    monkeypatch.setattr(routing_speed, "knowing", watched)
    for count in ACTIVE:
        preparation(bench, count)()
    own = bench.state.adapter_spec.rank
    assert ranks == [own * count for count in ACTIVE]


def test_turns_change_their_order_and_the_first_round_does_not_count() -> None:
    log: list[str] = []
    ticks = iter(range(100))
    works = {"a": lambda: log.append("a"), "b": lambda: log.append("b")}
    found = interleaved(works, rounds=2, clock=lambda: float(next(ticks)))
    assert log == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": [1.0, 1.0], "b": [1.0, 1.0]}


def test_ratios_are_over_plain_and_the_largest_counts() -> None:
    assert PLAIN in CASES and {name for names in RATIOS.values() for name in names} < set(CASES)
    drawing = {name: [2.0, 2.0, 9.0] for name in CASES} | {"elastic_weights": [3.0, 3.0, 1.0]}
    preparing = {f"prepare_{count}": [count / 10, count / 10, 5.0] for count in ACTIVE}
    result = summary(drawing, preparing)
    assert result["routed_over_plain"] == 1.5
    assert result["prepare_prompt_seconds_50"] == 0.1
    assert result["prepare_prompt_seconds_50_by_active"] == {1: 0.1, 2: 0.2, 4: 0.4, 8: 0.8}
    assert row("plain", [1.0, 2.0, 9.0])["median_seconds"] == 2.0


def test_the_command_records_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = made_bench(random_backbone("demo"), steps=2, concepts=max(ACTIVE))
    monkeypatch.setattr(routing_speed, "made_bench", lambda *_: small)
    monkeypatch.setattr("sys.argv", ["routing_speed", "--rounds", "1", "--out", str(tmp_path)])
    threads = []
    monkeypatch.setattr(routing_speed.torch, "set_num_threads", threads.append)
    monkeypatch.setattr(routing_speed.torch, "set_flush_denormal", lambda _: None)
    routing_speed.main()
    result = read_json(tmp_path / "routing_speed.json")
    assert threads == [1] and result["command"].endswith("--rounds 1")
    regional = {AUTOMATIC, *(f"regions_{n}" for n in REGIONS)}
    prepared = {f"prepare_{n}" for n in ACTIVE}
    worded = {f"by_words_{n}" for n in ACTIVE}
    assert {one["run"] for one in result["runs"]} == {*CASES, *worded, *regional, *prepared}
    assert result["summary"]["routed_over_plain"] > 0
    assert list(result["summary"]["regions_over_plain"]) == ["1", "2", "3"]


def test_concepts_heard_by_words_are_counted_and_over_plain(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []
    attach = AdaptersByWords.attached

    def watched(self: AdaptersByWords, backbone: Backbone):
        heard.append(len(self.adapters))
        return attach(self, backbone)

    monkeypatch.setattr(AdaptersByWords, "attached", watched)
    works = word_works(bench.backbone, bench.state, bench.steps)
    for work in works.values():
        work()
    assert heard == list(ACTIVE)
    drawing = {PLAIN: [2.0], **{f"by_words_{count}": [float(count)] for count in ACTIVE}}
    assert word_ratios(drawing, PLAIN) == {
        "by_words_over_plain": {count: count / 2 for count in ACTIVE}
    }


def test_regions_are_counted_and_over_plain() -> None:
    drawing = {"plain": [2.0, 2.0, 9.0], AUTOMATIC: [2.5, 2.5, 1.0]}
    drawing |= {f"regions_{count}": [float(count)] for count in REGIONS}
    found = regional_ratios(drawing, "plain")
    assert found == {
        "regions_over_plain": {1: 0.5, 2: 1.0, 3: 1.5},
        "automatic_over_plain": 1.25,
    }
