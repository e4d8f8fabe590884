"""Which cells are measured, from which prompts and noise, on which pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from lifelong_core.errors import InputError
from lifelong_core.evaluation import stream as module
from lifelong_core.evaluation.drawing import pictures_of
from lifelong_core.evaluation.prompts import (
    concept_free_prompts,
    evaluation_prompts,
    spread_first,
    style_prompts,
)
from lifelong_core.evaluation.protocol import Protocol, chosen, schedule
from lifelong_core.evaluation.stream import stream_named
from lifelong_core.world.clip import VOCABULARY


def test_short_streams_are_measured_completely() -> None:
    assert schedule(3) == {1: (1,), 2: (1, 2), 3: (1, 2, 3)}
    assert sum(map(len, schedule(5).values())) == 15


def test_longer_streams_have_the_diagonal_and_three_rows() -> None:
    rows = schedule(10)
    assert [len(rows[after]) for after in range(1, 11)] == [1, 2, 1, 1, 5, 1, 1, 1, 1, 10]
    assert all(after in concepts for after, concepts in rows.items())


def test_fifty_concepts_are_measured_on_ten() -> None:
    rows = schedule(50)
    assert rows[10] == (1, 6, 10)
    assert rows[25] == (1, 6, 11, 16, 21, 25)
    assert rows[50] == (1, 6, 11, 16, 21, 26, 31, 36, 41, 46, 50)
    assert chosen(50) == (1, 6, 11, 16, 21, 26, 31, 36, 41, 46)
    assert all(rows[after] == (after,) for after in rows if after not in (10, 25, 50))


def test_the_usual_counts() -> None:
    protocol = Protocol()
    prompts = evaluation_prompts("dog")
    cell = pictures_of(prompts, protocol, last=False, seed=2, concept=1)
    last = pictures_of(prompts, protocol, last=True, seed=2, concept=1)
    assert (len(cell.prompts), len(last.prompts)) == (20, 80) == (protocol.per_cell, 80)
    assert last.prompts[:20] == cell.prompts and last.seed == cell.seed
    assert sorted(set(last.prompts)) == sorted(prompts)
    other = pictures_of(prompts, protocol, last=False, seed=2, concept=2)
    assert other.seed != cell.seed


def test_the_prompts_in_front_are_from_all_over_the_list() -> None:
    assert spread_first(list("abcdef"), 3) == list("acebdf")
    short = spread_first(evaluation_prompts("dog"), 5)[:5]
    assert any("drawing" in prompt for prompt in short)
    assert any("photo" in prompt for prompt in short)


@pytest.mark.parametrize("make", [lambda: style_prompts("drawing"), concept_free_prompts])
def test_prompts_use_the_worlds_words_and_differ(make) -> None:
    prompts = make()
    assert len(set(prompts)) == 20
    assert {word for prompt in prompts for word in prompt.split()} <= set(VOCABULARY)


def test_toys_are_compared_to_pictures_that_lessons_do_not_see(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PHOTOS", 1)
    monkeypatch.setattr(module, "UNSEEN", 2)
    stream = stream_named("toys10", 2, size=64)
    assert [subject.task.noun for subject in stream.subjects].count("drawing") == 2
    first, style = stream.subjects[0], stream.subjects[5]
    assert first.task.images.shape == (1, 3, 64, 64) and first.real.shape == (2, 3, 64, 64)
    assert not any(torch.equal(a, b) for a in first.task.images for b in first.real)
    assert first.prompts[0].replace(first.task.phrase, first.task.noun) == first.plain[0]
    assert style.prompts[0].startswith(style.task.phrase + " of a ")


def test_a_folder_of_folders_of_photos_is_a_stream(tmp_path: Path) -> None:
    for name, colours in {"dog": ("red", "blue"), "duck_toy": ("green", "white", "black")}.items():
        folder = tmp_path / "My Photos" / name
        folder.mkdir(parents=True)
        for number, colour in enumerate(colours):
            Image.new("RGB", (80, 64), colour).save(folder / f"{number}.png")
    stream = stream_named(str(tmp_path / "My Photos"), 1, size=64)
    assert stream.name == "my_photos"
    assert [s.task.phrase for s in stream.subjects] == [
        "embedding:my-dog dog",
        "embedding:my-duck_toy duck",
    ]
    assert torch.equal(stream.subjects[1].real, stream.subjects[1].task.images)


def test_what_is_no_stream_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="toys5"):
        stream_named("toys7", 1, size=64)
    with pytest.raises(InputError, match="holds no folders"):
        stream_named(str(tmp_path), 1, size=64)
    (tmp_path / "dog").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "dog" / "one.png")
    with pytest.raises(InputError, match="one photo"):
        stream_named(str(tmp_path), 1, size=64)
