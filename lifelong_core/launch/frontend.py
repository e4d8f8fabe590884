"""ComfyUI's real web page in a headless Chromium."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .browser import require_chromium
from .client import post_json

READY = """() => window.app && window.app.graph && window.app.vueAppReady !== false
  && window.LiteGraph && Object.keys(window.LiteGraph.registered_node_types).length > 100"""
LOAD = """async (workflow) => {
  await window.app.loadGraphData(workflow);
  const known = window.LiteGraph.registered_node_types;
  const nodes = window.app.graph.nodes || window.app.graph._nodes;
  return {
    nodes: nodes.length,
    missing: nodes.filter(n => !(n.type in known)).map(n => n.type),
    wrong: nodes.filter(n => n.has_errors).map(n => n.type),
  };
}"""
PATIENCE = 300_000  # Milliseconds: the machine may be busy.
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server")


@dataclass
class Frontend:
    """The open page. `messages`: (kind, text, address) of each console message and page error."""

    page: Any
    base_url: str
    messages: list[tuple[str, str, str]] = field(default_factory=list)

    def load(self, workflow: Mapping[str, Any]) -> dict[str, Any]:
        """Open a workflow; returns the number of `nodes`, and those `missing` and `wrong`."""
        report: dict[str, Any] = self.page.evaluate(LOAD, workflow)
        return report

    def prompt(self) -> dict[str, Any]:
        """The open workflow in API form, made by the page itself."""
        prompt: dict[str, Any] = self.page.evaluate(
            "async () => (await app.graphToPrompt()).output"
        )
        return prompt

    def problems(self, part: str) -> list[str]:
        """Errors and warnings that mention `part` in their text or address, and page errors."""
        return [
            f"{kind}: {text} ({address})"
            for kind, text, address in self.messages
            if kind == "pageerror"
            or (kind in ("error", "warning") and (part in text or part in address))
        ]

    def screenshot(self, path: Path, **options: Any) -> None:
        """Save what the page shows (PNG or JPEG by the suffix)."""
        self.page.screenshot(path=str(path), **options)


@contextlib.contextmanager
def open_frontend(base_url: str) -> Iterator[Frontend]:
    """Open the page of the server at `base_url` and wait until its nodes are registered."""
    from playwright.sync_api import sync_playwright

    # Otherwise the first visit opens a dialog over everything.
    post_json(f"{base_url}/settings/Comfy.TutorialCompleted", True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(require_chromium()), args=list(FLAGS)
        )
        try:
            page = browser.new_page(viewport={"width": 1600, "height": 1000})
            frontend = Frontend(page, base_url)
            keep = frontend.messages.append
            page.on("console", lambda m: keep((m.type, m.text, m.location.get("url", ""))))
            page.on("pageerror", lambda error: keep(("pageerror", str(error), "")))
            page.goto(base_url, wait_until="domcontentloaded", timeout=PATIENCE)
            page.wait_for_function(READY, timeout=PATIENCE)
            yield frontend
        finally:
            browser.close()
