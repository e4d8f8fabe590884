"""What a benchmark has measured before it was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.kept import kept_json


def test_what_a_stopped_command_measured_stays(tmp_path: Path) -> None:
    measured: list[int] = []

    def measure() -> dict[str, Any]:
        measured.append(1)
        return {"cpu_seconds": [0.25, 1.5]}

    for _ in range(2):
        assert kept_json(tmp_path / "work", "a step", measure) == {"cpu_seconds": [0.25, 1.5]}
    assert measured == [1]
