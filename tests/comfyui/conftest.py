"""A real ComfyUI and its real web page for tests. What is missing is an error, never a skip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lifelong_core.launch import comfyui
from lifelong_core.launch.frontend import Frontend, open_frontend
from lifelong_core.launch.pack import CHECKPOINT, prepare_base
from lifelong_core.launch.paths import DEMO_WEIGHTS
from lifelong_core.launch.server import ComfyServer
from lifelong_core.world.demo_inputs import prepare_demo_inputs


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    """ComfyUI's source folder: COMFYUI_PATH or the fetched copy."""
    return comfyui.require().path


@pytest.fixture(scope="session")
def comfyui_server(
    comfyui_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyServer]:
    """One real server for all tests, with the pack, the demo model, the toys' photos and a state.

    `.run(workflow in API form, timeout)`, `.object_info()`, `.logs()`, `.folder(name)`,
    `.interrupt()`. Tests share it: leave nothing running, and take file names of your own.
    """
    base = prepare_base(tmp_path_factory.mktemp("comfyui"))
    if not DEMO_WEIGHTS.is_file():
        _random_checkpoint(base / "models" / "checkpoints" / CHECKPOINT)
    prepare_demo_inputs(base / "input")
    _saved_state(base, "my_concepts", ("my_dog",))
    _saved_state(base, "two_toys", ("my_dog", "my_cat"))
    with ComfyServer(comfyui.require(), base) as server:
        yield server


@pytest.fixture(scope="module")
def browser_page(comfyui_server: ComfyServer) -> Iterator[Frontend]:
    """The server's web page in Chromium: `.load(workflow)`, `.prompt()`, `.problems(part)`."""
    with open_frontend(comfyui_server.base_url) as frontend:
        yield frontend


def _random_checkpoint(path: Path) -> None:
    from lifelong_core.backbone import random_backbone, save_single_file

    save_single_file(random_backbone("demo"), path)


def _saved_state(base: Path, name: str, tokens: Sequence[str]) -> None:
    """A file that shipped workflows load, as lessons would have saved it."""
    from lifelong_core.adapters import build_adapter
    from lifelong_core.adapters.spec import AdapterSpec
    from lifelong_core.backbone import load_backbone
    from lifelong_core.concepts import Concept
    from lifelong_core.state import LifelongState, TaskRecord, save_state

    backbone = load_backbone(base / "models" / "checkpoints" / CHECKPOINT)
    spec = AdapterSpec()
    weights = build_adapter(spec, backbone, seed=0).state()
    records = []
    for token in tokens:
        noun = token.removeprefix("my_")
        concept = Concept(token, noun, backbone.text.noun_vector(noun))
        records.append(TaskRecord(concept, "not learned", weights, {}, {}))
    state = LifelongState(backbone.family.name, backbone.fingerprint, spec, weights, tuple(records))
    save_state(state, base / "output" / "lifelong" / f"{name}_00001.lifelong.safetensors")
