"""Unions are held against each of their parts, on the streams that all share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks.combinations import compared
from lifelong_core.errors import InputError


def run(method: str, seed: int, ia: Sequence[float], mmd: float = 1.0) -> dict[str, Any]:
    """Two toys, `ia` after their own lessons and at the end: base 0.2, alone 0.6."""
    own, last = ia[0], ia[1]
    final = {"mmd": mmd, "kid": mmd, "ia_base": 0.2, "ia_alone": 0.6, "f_mmd": None, "ta": 0.3}
    cells = [(1, 1, own), (2, 1, last), (2, 2, last)]
    return {
        "method": method,
        "stream_seed": seed,
        "concepts": [{}, {}],
        "lessons": [{"seconds": 10.0}, {"seconds": 20.0}],
        "measured": {
            "clip": {
                "cells": [
                    {"after": after, "concept": toy, "ia": value, "mmd": mmd, "kid": mmd, "ta": 0.3}
                    for after, toy, value in cells
                ],
                "final": [final | {"concept": toy, "ia": last} for toy in (1, 2)],
                "drift": {"kid": 0.1 * mmd},
            }
        },
    }


def test_a_union_is_held_against_each_of_its_parts_on_shared_streams() -> None:
    runs = [
        run("l2dm_lora", 2, (0.5, 0.3)),
        run("l2dm_lora", 3, (0.9, 0.9)),  # a stream that the union lacks
        run("ewc_dc", 2, (0.5, 0.4)),
        run("ewc_dc", 3, (0.5, 0.4)),
        run("l2dm_lora_ewc_dc", 2, (0.5, 0.5), mmd=1.5),  # on one stream: never the default
        run("dsc_ewc_dc", 2, (0.9, 0.9)),  # without one of its parts
    ]
    summary, rows = compared(runs, "clip")
    assert summary["seeds"] == {"l2dm_lora": [2, 3], "ewc_dc": [2, 3], "l2dm_lora_ewc_dc": [2]}
    assert list(summary["candidates"]) == ["l2dm_lora", "ewc_dc", "l2dm_lora_ewc_dc"]
    assert summary["candidates"]["l2dm_lora"][0] == pytest.approx((0.25 + 1.75) / 2)
    over = summary["unions"]["l2dm_lora_ewc_dc"]
    assert over["ewc_dc"]["kept_gain"] == pytest.approx([0.25] * 3)
    assert over["l2dm_lora"]["a_mmd"] == pytest.approx([-0.5] * 3), "a higher MMD is worse"
    assert over["l2dm_lora"]["tfr_ia"] == pytest.approx([0.2] * 3)
    assert summary["beats_both"]["l2dm_lora_ewc_dc"] == {
        "kept_gain": True,
        "a_mmd": False,
        "tfr_ia": False,  # A single toy on a single stream shows nothing.
        "base_drift": False,
    }
    assert summary["default"]["name"] == "l2dm_lora"
    more = summary["default"]["kept_gain_more_than"]
    assert list(more) == ["ewc_dc"] and more["ewc_dc"][0] == pytest.approx(0.5)
    assert {row["method"]: row["seconds"][0] for row in rows}["ewc_dc"] == pytest.approx(15.0)


def test_what_trains_no_lora_is_compared_but_never_the_default() -> None:
    runs = [
        run("l2dm", 2, (0.6, 0.6)),
        run("ewc_dc", 2, (0.5, 0.4)),
        run("l2dm_ewc_dc", 2, (0.6, 0.6)),
    ]
    summary, _ = compared(runs, "clip")
    assert summary["default"]["name"] == "ewc_dc"
    assert summary["beats_both"]["l2dm_ewc_dc"]["kept_gain"] is False, "level with one part"


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [run("ewc_dc", 2, (0.5, 0.5))],
        [run(name, seed, (0.5, 0.5)) for seed, name in enumerate(("dsc", "ewc_dc", "dsc_ewc_dc"))],
    ],
)
def test_without_a_union_and_its_parts_it_says_what_to_run(runs: list[dict[str, Any]]) -> None:
    with pytest.raises(InputError, match="--methods l2dm_lora,ewc_dc,l2dm_lora_ewc_dc"):
        compared(runs, "clip")
