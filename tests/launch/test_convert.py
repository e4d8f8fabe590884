"""UI format to API form on graphs small enough to check by eye."""

from __future__ import annotations

from typing import Any

import pytest

from lifelong_core.errors import InputError
from lifelong_core.launch.convert import to_api

INFO = {
    "Load": {
        "input": {"required": {"name": [["a", "b"], {}]}},
        "input_order": {"required": ["name"]},
        "display_name": "Load Something",
    },
    "Work": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "text": ["STRING", {"multiline": True}],
                "seed": ["INT", {"control_after_generate": True}],
                "steps": ["INT", {}],
                "kind": ["COMBO", {"options": ["x", "y"], "control_after_generate": True}],
                "wired": ["FLOAT", {"forceInput": True}],
            },
            "optional": {"mask": ["MASK", {}], "size": ["INT", {}]},
        },
        "input_order": {
            "required": ["model", "text", "seed", "steps", "kind", "wired"],
            "optional": ["mask", "size"],
        },
        "display_name": "Work",
    },
    "Plain": {"input": {"required": {"noise_seed": ["INT", {}], "n": ["INT", {}]}}},
    "Changing": {"input": {"required": {"n": ["COMFY_AUTOGROW_V3", {}]}}},
}


def graph(*nodes: dict[str, Any], links: list[list[Any]] | None = None) -> dict[str, Any]:
    return {"nodes": list(nodes), "links": links or [], "version": 0.4}


def node(number: int, kind: str, values: Any = None, **more: Any) -> dict[str, Any]:
    return {"id": number, "type": kind, "mode": 0, "widgets_values": values, **more}


LOAD = node(1, "Load", ["b"], title="My model")
WORK = node(
    2,
    "Work",
    ["hello", 7, "randomize", 20, "y", "fixed", "", 64],
    inputs=[
        {"name": "model", "link": 5},
        {"name": "mask", "link": None},
        {"name": "steps", "link": None, "widget": {"name": "steps"}},
    ],
)
LINK = [5, 1, 0, 2, 0, "MODEL"]


def test_links_and_widgets_by_position() -> None:
    assert to_api(graph(LOAD, WORK, node(3, "Note", ["read me"]), links=[LINK]), INFO) == {
        "1": {"class_type": "Load", "inputs": {"name": "b"}, "_meta": {"title": "My model"}},
        "2": {
            "class_type": "Work",
            "inputs": {
                "model": ["1", 0],
                "text": "hello",
                "seed": 7,
                "steps": 20,
                "kind": "y",
                "size": 64,
            },
            "_meta": {"title": "Work"},
        },
    }


def test_a_link_into_a_widget_wins_and_its_saved_value_still_takes_its_place() -> None:
    linked = {**WORK, "inputs": [{"name": "steps", "link": 5, "widget": {"name": "steps"}}]}
    inputs = to_api(graph(LOAD, linked, links=[LINK]), INFO)["2"]["inputs"]
    assert inputs["steps"] == ["1", 0]
    assert inputs["kind"] == "y"


def test_seed_names_have_the_extra_value_unasked() -> None:
    prompt = to_api(graph(node(1, "Plain", [3, "fixed", 4])), INFO)
    assert prompt["1"]["inputs"] == {"noise_seed": 3, "n": 4}


def test_values_saved_by_name() -> None:
    prompt = to_api(graph(node(1, "Plain", {"n": 4, "noise_seed": 3})), INFO)
    assert prompt["1"]["inputs"] == {"noise_seed": 3, "n": 4}


def test_a_list_is_no_link() -> None:
    prompt = to_api(graph(node(1, "Load", [["1", 0]])), INFO)
    assert prompt["1"]["inputs"] == {"name": {"__value__": ["1", 0]}}


def test_muted_nodes_and_links_from_them_are_left_out() -> None:
    prompt = to_api(graph({**LOAD, "mode": 2}, WORK, links=[LINK]), INFO)
    assert set(prompt) == {"2"}
    assert "model" not in prompt["2"]["inputs"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({**LOAD, "mode": 4}, r"Node 1 \(Load\) is bypassed"),
        (node(1, "Elsewhere", []), r"Node 1 \(Elsewhere\) is not a node"),
        (node(1, "Plain", [3]), "1 saved values and none for n"),
        (node(1, "Changing", []), "COMFY_AUTOGROW_V3"),
    ],
)
def test_what_is_not_covered_is_refused_by_name(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        to_api(graph(wrong), INFO)
