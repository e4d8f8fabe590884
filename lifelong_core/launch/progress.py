"""ComfyUI's websocket messages as plain lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .console import say


class ProgressLines:
    """Give it each message of a run: it says which node works, and each tenth of its steps."""

    def __init__(self, workflow: Mapping[str, Any], tell: Callable[[str], None] = say) -> None:
        self._titles = {node: entry["_meta"]["title"] for node, entry in workflow.items()}
        self._tell = tell
        self._tenths: dict[str, int] = {}

    def __call__(self, event: Mapping[str, Any]) -> None:
        data = event.get("data", {})
        node = data.get("node")
        if node not in self._titles:
            return
        if event["type"] == "executing":
            self._tell(f"  {self._titles[node]}")
        elif event["type"] == "progress" and data.get("max", 0) > 1:
            self._steps(node, data["value"], data["max"])

    def _steps(self, node: str, value: float, maximum: float) -> None:
        tenth = int(10 * value / maximum)
        if tenth != self._tenths.get(node, 0):
            self._tenths[node] = tenth
            self._tell(f"    {value:.0f} of {maximum:.0f}")
