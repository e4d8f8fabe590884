"""Recorded results: one JSON per run of a benchmark, with its pictures beside it."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.machine import hardware, load, versions
from lifelong_core.errors import InputError
from lifelong_core.evaluation.drawing import write_jpeg
from lifelong_core.files import read_json, write_json
from lifelong_core.launch.paths import CACHE

RESULTS = Path(__file__).with_name("results")
TUNING_STREAM = 1
"""The stream on which settings are chosen: what is measured on it is no result."""
NAME = re.compile(r"[a-z0-9_]+")
FOLDER = re.compile(r"(?<![\w.:/])(?:/[\w.-]+){2,}|\b[A-Za-z]:[\\/]\w|\\\\\w")
"""A path from the root of a disk; web addresses and fractions are none."""


@dataclass(frozen=True)
class Recorder:
    """Make it before the work begins, for date and load, and call `write` after it.

    name: of the result, in small letters. command: as a reader would type it. settings: plain JSON
    values that another run would need to find the same. Results of the stream `TUNING_STREAM` lie
    outside the recorded ones, whatever the folder.
    """

    name: str
    command: str
    settings: Mapping[str, Any]
    folder: Path = RESULTS
    date: str = field(
        default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds")
    )
    load_before: float = field(default_factory=load)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise InputError(f"{self.name!r} names no result: write small letters, digits, '_'.")
        if self.folder == RESULTS and self.settings.get("stream_seed") == TUNING_STREAM:
            object.__setattr__(self, "folder", CACHE / "tuning")

    @property
    def path(self) -> Path:
        """The result's JSON."""
        return self.folder / f"{self.name}.json"

    def earlier(self) -> dict[str, Any] | None:
        """What an earlier command with the same settings wrote; None when there is no such."""
        known: dict[str, Any] = read_json(self.path) if self.path.exists() else {}
        same = known.get("settings") == json.loads(json.dumps(dict(self.settings)))
        return known if same else None

    def write(
        self,
        summary: Mapping[str, Any],
        runs: Sequence[Mapping[str, Any]],
        pictures: Mapping[str, Image.Image] | None = None,
    ) -> Path:
        """Write `<name>.json`, and `<name>_<key>.jpg` per picture; returns the JSON's path.

        Raises InputError, before anything is written, when a text holds a path or the name of
        this machine; FileError when the folder cannot be written.
        """
        named = {f"{self.name}_{key}.jpg": picture for key, picture in (pictures or {}).items()}
        result = {
            "summary": dict(summary),
            "runs": [dict(run) for run in runs],
            "command": self.command,
            "settings": dict(self.settings),
            "versions": versions(),
            "hardware": hardware() | {"load_before": self.load_before, "load_after": load()},
            "date": self.date,
            **({"pictures": list(named)} if named else {}),
        }
        for text in _texts(result):
            _check_public(text)
        for name, picture in named.items():
            write_jpeg(picture, self.folder / name)
        return write_json(self.path, result)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def _check_public(text: str) -> None:
    host = socket.gethostname()
    named = host != "localhost" and re.search(rf"\b{re.escape(host)}\b", text)
    if named or FOLDER.search(text):
        raise InputError(
            f"{text!r} tells of this machine's folders or its name. Leave that out of results."
        )
