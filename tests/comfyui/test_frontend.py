"""The web page's own judgement, on stock nodes: it sees what is missing, and agrees with us."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from lifelong_core.launch.convert import to_api
from lifelong_core.launch.frontend import Frontend
from lifelong_core.launch.pack import CHECKPOINT
from lifelong_core.launch.server import ComfyServer

PHOTO = "frontend_photo.png"


@pytest.fixture(scope="module", autouse=True)
def photo(comfyui_server: ComfyServer) -> None:
    """A picture for LoadImage, there before the page asks what there is."""
    photo = next(comfyui_server.folder("input").glob("demo_*/*.png"))
    shutil.copy(photo, comfyui_server.folder("input") / PHOTO)


def node(number: int, kind: str, values: list[Any], inputs: dict[str, Any], outputs: list[str]):
    return {
        "id": number,
        "type": kind,
        "pos": [300 * number, 100],
        "size": [280, 200],
        "flags": {},
        "order": number,
        "mode": 0,
        "inputs": [{"name": name, "type": t, "link": link} for name, (t, link) in inputs.items()],
        "outputs": [{"name": t, "type": t, "links": []} for t in outputs],
        "properties": {"Node name for S&R": kind},
        "widgets_values": values,
    }


def workflow(*nodes: dict[str, Any], links: list[list[Any]]) -> dict[str, Any]:
    return {
        "last_node_id": 20,
        "last_link_id": 20,
        "nodes": list(nodes),
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


STOCK = workflow(
    node(1, "CheckpointLoaderSimple", [CHECKPOINT], {}, ["MODEL", "CLIP", "VAE"]),
    node(2, "CLIPTextEncode", ["a dog"], {"clip": ("CLIP", 1)}, ["CONDITIONING"]),
    node(3, "LoadImage", [PHOTO, "image"], {}, ["IMAGE", "MASK"]),
    node(4, "VAEEncode", [], {"pixels": ("IMAGE", 3), "vae": ("VAE", 4)}, ["LATENT"]),
    node(
        5,
        "KSampler",
        [7, "randomize", 20, 8, "euler", "normal", 0.5],
        {
            "model": ("MODEL", 2),
            "positive": ("CONDITIONING", 5),
            "negative": ("CONDITIONING", 6),
            "latent_image": ("LATENT", 7),
        },
        ["LATENT"],
    ),
    node(6, "VAEDecode", [], {"samples": ("LATENT", 8), "vae": ("VAE", 9)}, ["IMAGE"]),
    node(7, "SaveImage", ["stock"], {"images": ("IMAGE", 10)}, []),
    links=[
        [1, 1, 1, 2, 0, "CLIP"],
        [2, 1, 0, 5, 0, "MODEL"],
        [3, 3, 0, 4, 0, "IMAGE"],
        [4, 1, 2, 4, 1, "VAE"],
        [5, 2, 0, 5, 1, "CONDITIONING"],
        [6, 2, 0, 5, 2, "CONDITIONING"],
        [7, 4, 0, 5, 3, "LATENT"],
        [8, 5, 0, 6, 0, "LATENT"],
        [9, 1, 2, 6, 1, "VAE"],
        [10, 6, 0, 7, 0, "IMAGE"],
    ],
)


def test_the_page_and_our_conversion_agree(
    browser_page: Frontend, comfyui_server: ComfyServer
) -> None:
    report = browser_page.load(STOCK)
    assert report == {"nodes": 7, "missing": [], "wrong": []}
    ours = to_api(STOCK, comfyui_server.object_info())
    theirs = browser_page.prompt()
    assert {n: e["inputs"] for n, e in ours.items()} == {n: e["inputs"] for n, e in theirs.items()}


def test_the_page_reports_a_missing_node(browser_page: Frontend) -> None:
    unknown = node(1, "NoSuchNode", [], {}, [])
    assert browser_page.load(workflow(unknown, links=[]))["missing"] == ["NoSuchNode"]


def test_the_page_reports_our_errors(browser_page: Frontend) -> None:
    browser_page.page.evaluate("() => console.error('trouble in lifelong/page.js')")
    browser_page.page.evaluate("() => console.error('trouble elsewhere')")
    assert [text for text in browser_page.problems("lifelong") if "trouble" in text] == [
        "error: trouble in lifelong/page.js ()"
    ]
    browser_page.messages.clear()
