"""The judge on objects whose looks are known."""

from __future__ import annotations

import torch

from lifelong_core.world.judge import Observation
from lifelong_core.world.judge_net import ATTRIBUTES
from lifelong_core.world.looks import Look
from lifelong_core.world.shapes import NOUNS
from lifelong_core.world.wearing import Wanted, likelihood, share_below, verdict

DOG = Wanted("dog", Look("red", "striped", "white", accent="green", scarf="blue"))
CAT = Wanted("cat", Look("teal", "spotted", "black", hat="pink"))


def _seen(noun: str, look: Look, x: float = 0.5, sure: float = 0.9) -> Observation:
    def log(size: int, index: int) -> torch.Tensor:
        values = torch.full((size,), (1 - sure) / (size - 1))
        values[index] = sure
        return values.log()

    attributes = {
        name: log(len(values), values.index(getattr(look, name)))
        for name, values in ATTRIBUTES.items()
    }
    return Observation(log(len(NOUNS), NOUNS.index(noun)), attributes, x, 0.5, 0.9)


def test_both_in_their_looks() -> None:
    seen = (_seen("dog", DOG.look, 0.2), _seen("cat", CAT.look, 0.7))
    found = verdict(seen, [CAT, DOG])
    assert found.present == (True, True) and found.once_each and found.unswapped
    assert verdict(seen, [DOG, CAT]) == found


def test_colours_of_a_pattern_count_in_either_order() -> None:
    turned = Look("white", "striped", "red", accent="green", scarf="blue")
    assert likelihood(_seen("dog", turned), DOG.look) == likelihood(_seen("dog", DOG.look), turned)
    assert share_below(_seen("dog", turned), DOG.look) == 1


def test_a_part_that_was_missed_does_not_make_another_look() -> None:
    almost = Look("red", "striped", "white", accent="green")
    assert verdict([_seen("dog", almost)], [DOG]).present == (True,)


def test_missing_doubled_swapped_and_strange() -> None:
    dog, cat = _seen("dog", DOG.look, 0.2), _seen("cat", CAT.look, 0.7)
    missing = verdict([dog], [DOG, CAT])
    assert missing.named == (True, False) and missing.present == (True, False)
    assert not missing.all_present and not missing.unswapped
    doubled = verdict([dog, dog, cat], [DOG, CAT])
    assert doubled.all_present and doubled.unswapped and not doubled.once_each
    extra = verdict([dog, cat, _seen("car", Look("red"))], [DOG, CAT])
    assert extra.all_present and not extra.once_each
    swapped = verdict([_seen("dog", CAT.look), _seen("cat", DOG.look)], [DOG, CAT])
    assert swapped.named == (True, True) and swapped.present == (False, False)
    assert not swapped.unswapped
    strange = verdict([dog, _seen("cat", Look("yellow", scarf="red"))], [DOG, CAT])
    assert strange.present == (True, False) and not strange.once_each


def test_two_wanted_of_one_noun_are_told_apart_by_their_looks() -> None:
    other = Wanted("dog", CAT.look)
    seen = [_seen("dog", CAT.look, 0.2), _seen("dog", DOG.look, 0.7)]
    found = verdict(seen, [DOG, other])
    assert found.once_each and found.unswapped
    assert verdict(seen[1:], [DOG, other]).present == (True, False)


def test_plain_objects_are_compared_to_plain_colours() -> None:
    wanted = [Wanted("dog", Look("red")), Wanted("cat", Look("blue"))]
    right = [_seen("dog", Look("red")), _seen("cat", Look("blue"))]
    assert verdict(right, wanted).once_each
    wrong = [_seen("dog", Look("red")), _seen("cat", Look("green"))]
    assert verdict(wrong, wanted).present == (True, False)
    assert verdict([], wanted).named == (False, False)
