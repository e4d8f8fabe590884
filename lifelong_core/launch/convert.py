"""A workflow as the web page saves it (UI format 0.4) into the form that ComfyUI runs (API form).

Covers what a plain graph of registered nodes needs: links, widgets by position, notes, muted
nodes. Anything else (subgraphs, bypassed nodes, nodes that exist only in the page) is refused by
name, because guessing would run something else than the page shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import InputError

ONLY_TEXT = {"Note", "MarkdownNote"}
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
# The page adds a "what to do after a run" widget behind these even when the node does not ask.
SEED_NAMES = {"seed", "noise_seed"}
MUTED, BYPASSED = 2, 4


def to_api(workflow: Mapping[str, Any], object_info: Mapping[str, Any]) -> dict[str, Any]:
    """`workflow` in API form. `object_info`: ComfyUI's answer to GET /object_info.

    Raises InputError naming the node when the workflow holds something not covered.
    """
    nodes = [node for node in workflow["nodes"] if node["type"] not in ONLY_TEXT]
    active = {node["id"] for node in nodes if node.get("mode", 0) != MUTED}
    links = {link[0]: link for link in workflow["links"]}
    prompt: dict[str, Any] = {}
    for node in nodes:
        if node["id"] not in active:
            continue
        if node["type"] not in object_info:
            raise InputError(
                f"{_name(node)} is not a node of this ComfyUI. Open the workflow in the web page "
                "to see what is missing."
            )
        if node.get("mode", 0) == BYPASSED:
            raise InputError(f"{_name(node)} is bypassed; connect around it or mute it.")
        info = object_info[node["type"]]
        inputs = dict(_widget_values(node, info))
        for entry in node.get("inputs") or ():
            link = links.get(entry.get("link"))
            if link is not None and link[1] in active:
                inputs[entry["name"]] = [str(link[1]), link[2]]
        prompt[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": inputs,
            "_meta": {"title": node.get("title") or info.get("display_name") or node["type"]},
        }
    return prompt


def _name(node: Mapping[str, Any]) -> str:
    return f"Node {node['id']} ({node['type']})"


def _widget_values(node: Mapping[str, Any], info: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Name and value of each widget. The page saves values in the order of the node's inputs."""
    values = node.get("widgets_values") or []
    if isinstance(values, Mapping):
        yield from ((n, values[n]) for n, _ in _inputs(info) if n in values)
        return
    position = 0
    for name, spec in _inputs(info):
        if not _is_widget(node, spec):
            continue
        if position >= len(values):
            raise InputError(
                f"{_name(node)} has {len(values)} saved values and none for {name}: the workflow "
                "was saved with another version of the node. Open it in the web page and save it."
            )
        value = values[position]
        # A list would be read as a link.
        yield name, {"__value__": value} if isinstance(value, list) else value
        position += 1 + _extra_widgets(name, spec)


def _inputs(info: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[Any]]]:
    order = info.get("input_order", {})
    for part in ("required", "optional"):
        specs = info["input"].get(part, {})
        for name in order.get(part, specs):
            yield name, specs[name]


def _options(spec: Sequence[Any]) -> Mapping[str, Any]:
    return spec[1] if len(spec) > 1 else {}


def _is_widget(node: Mapping[str, Any], spec: Sequence[Any]) -> bool:
    kind = spec[0]
    if isinstance(kind, str) and kind.startswith("COMFY_"):
        raise InputError(f"{_name(node)} has an input of the changing kind {kind}: not covered.")
    return (isinstance(kind, list) or kind in WIDGET_TYPES) and not _options(spec).get("forceInput")


def _extra_widgets(name: str, spec: Sequence[Any]) -> int:
    """How many values the page saves behind this one for its own use."""
    kind, options = spec[0], _options(spec)
    asked = options.get("control_after_generate")
    if kind == "INT":
        return int(bool(asked) if asked is not None else name in SEED_NAMES)
    # A list of choices also gets a filter field.
    return 2 if asked and (isinstance(kind, list) or kind == "COMBO") else 0
