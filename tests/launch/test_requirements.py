"""What is asked of pip: wide for the project, pinned only for the tested ComfyUI."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from lifelong_core.launch.comfyui import OLDEST, ComfyUI
from lifelong_core.launch.paths import ROOT
from lifelong_core.launch.requirements import TESTED_TORCH, requirements_for


@pytest.fixture
def fetched(tmp_path: Path) -> ComfyUI:
    (tmp_path / "requirements.txt").write_text("torch\naiohttp>=3.11\n\n# optional\nkornia # x\n")
    return ComfyUI(tmp_path, own=False)


def test_the_demo_needs_comfyui_and_the_library(fetched: ComfyUI) -> None:
    wanted = requirements_for("demo", fetched)
    assert wanted.lines[:3] == ("torch", "aiohttp>=3.11", "kornia")
    names = {re.split("[<>=]", line)[0] for line in wanted.lines}
    assert {"diffusers", "peft", "open_clip_torch"} <= names
    assert "pytest" not in names
    assert set(wanted.pins) == {f"{name}=={version}" for name, version in TESTED_TORCH.items()}


def test_the_tests_need_more(fetched: ComfyUI) -> None:
    demo, test = requirements_for("demo", fetched), requirements_for("test", fetched)
    assert set(demo.lines) < set(test.lines)
    assert any(line.startswith("playwright") for line in test.lines)


def test_the_users_own_comfyui_is_not_pinned(fetched: ComfyUI) -> None:
    assert requirements_for("demo", replace(fetched, own=True)).pins == ()


def test_a_torch_that_is_there_stays(fetched: ComfyUI) -> None:
    assert requirements_for("demo", fetched, {"torch": "2.5.1+cu124"}).pins == (
        "torch==2.5.1+cu124",
    )


def test_the_stamp_follows_every_change(fetched: ComfyUI) -> None:
    wanted = requirements_for("demo", fetched)
    stamps = {
        wanted.stamp(),
        replace(wanted, pins=()).stamp(),
        replace(wanted, lines=(*wanted.lines, "more")).stamp(),
        requirements_for("test", fetched).stamp(),
    }
    assert len(stamps) == 4
    assert wanted.stamp() == requirements_for("demo", fetched).stamp()


def test_manifest_keeps_comfy_registrys_rules() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = text.split("dependencies = [", 1)[1].split("[project.urls]")[0]
    assert not re.search(r"==|<|~=", dependencies), "no upper bounds: they break other packs"
    assert "comfyui" not in re.search(r'^name = "(.*)"', text, re.MULTILINE)[1].lower()
    version = re.search(r'^version = "(\d+\.\d+\.\d+)"', text, re.MULTILINE)[1]
    library = (ROOT / "lifelong_core" / "__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{version}"' in library
    for line in (ROOT / "requirements.txt").read_text().split():
        assert f'"{line}"' in dependencies
    assert 'license = { file = "LICENSE" }' in text
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    oldest = ".".join(map(str, OLDEST))
    assert f'requires-comfyui = ">={oldest}"' in text
    assert {"dev", "bench"} <= set(re.findall(r"^(\w+) = \[", text, re.MULTILINE))
